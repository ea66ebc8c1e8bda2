"""A wheel of this very package, for machines where it is to run: from an installation, or from a checkout."""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ..errors import LaunchError
from .package import ROOT as PACKAGE
from .package import package_files

STAMP = (2020, 1, 1, 0, 0, 0)  # the same package gives the same bytes
WEIGHTS = ".safetensors"
ENTRY_POINTS = "[console_scripts]\nshoestring = shoestring.cli.main:main\n"
TAGS = "Wheel-Version: 1.0\nGenerator: shoestring\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel_name() -> str:
    """The file name of the wheel. Raises: LaunchError as build_wheel."""
    return f"shoestring-{_version(_metadata())}-py3-none-any.whl"


def build_wheel(folder: Path, *, has_weights: bool = True) -> Path:
    """Write the wheel into folder and return its path. has_weights: with the demonstration models' weights, 7 MB.

    Raises: LaunchError where the package's metadata is neither installed nor in a checkout.
    Source: the binary distribution format, packaging.python.org.
    """
    metadata = _metadata()
    version = _version(metadata)
    info = f"shoestring-{version}.dist-info"
    files: dict[str, bytes] = {
        f"shoestring/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes()
        for path in package_files()
        if has_weights or path.suffix != WEIGHTS
    }
    texts = {"METADATA": metadata, "WHEEL": TAGS, "entry_points.txt": ENTRY_POINTS}
    files |= {f"{info}/{name}": text.encode() for name, text in texts.items()}
    rows = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"shoestring-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, STAMP), content, zipfile.ZIP_DEFLATED, compresslevel=1)
    return target


def _version(metadata: str) -> str:
    return next(line.split(":", 1)[1].strip() for line in metadata.splitlines() if line.startswith("Version:"))


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _metadata() -> str:
    """The core metadata, of the checkout this package runs from, else of the installation."""
    project_file = PACKAGE.parent.parent / "pyproject.toml"
    if project_file.is_file():
        project = tomllib.loads(project_file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "shoestring":
            return _from_project(project)
    try:
        text = distribution("shoestring").read_text("METADATA")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise LaunchError(
            f"the package at {PACKAGE} has no metadata, so no wheel can be made of it for the machine to install; "
            "install it with pip, or run from a checkout"
        )
    return text


def _from_project(project: dict[str, Any]) -> str:
    lines = ["Metadata-Version: 2.1", "Name: shoestring", f"Version: {project['version']}"]
    lines += [f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    return "\n".join(lines) + "\n"
