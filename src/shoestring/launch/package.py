"""This very program for another machine: its files as a stream, and the versions of what it needs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The dependencies of pyproject.toml, and those of its extras that a run may need: taken along where they are here.
CORE = (
    *("accelerate", "filelock", "fsspec", "numpy", "peft", "pydantic", "PyYAML", "rich", "scipy", "torch"),
    *("transformers", "typer"),
)
EXTRAS = (
    *("datasets", "pyarrow", "scikit-learn", "bitsandbytes", "tensorboard", "s3fs", "gcsfs", "adlfs", "pypdf"),
    *("wandb", "mlflow", "trackio", "bm25s", "sqlglot", "jsonschema", "math-verify", "antlr4-python3-runtime"),
)


def package_files() -> list[Path]:
    """The files of the package."""
    return sorted(p for p in ROOT.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def package_print(files: Iterable[Path]) -> str:
    """First 12 hex digits of the SHA-256 of names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def package_tar(files: Iterable[Path]) -> bytes:
    """The package as a tar archive with shoestring/ at its top."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in files:
            archive.add(path, arcname=str(Path("shoestring") / path.relative_to(ROOT)), recursive=False)
    return buffer.getvalue()


def pins() -> dict[str, str]:
    """Versions here of what a run needs there, without the local part that names a build (2.13.0+cpu)."""
    found = {}
    for name in (*CORE, *EXTRAS):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found
