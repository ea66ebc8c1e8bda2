"""Where llama.cpp is on this machine: its server, its quantiser, its scripts that convert to GGUF.

Nothing of it is shipped with Shoestring: the registries carry its sources alone, which scripts/build_llamacpp.py
builds, and packages of distributions and its own releases differ in what they hold.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingDependency

VARIABLE = "SHOESTRING_LLAMACPP"
CONVERT = "convert_hf_to_gguf.py"
CONVERT_LORA = "convert_lora_to_gguf.py"
GET_IT = (
    f"build it with 'python scripts/build_llamacpp.py --install DIR' of Shoestring's repository (about 11 minutes on "
    f"two cores) and set {VARIABLE}=DIR; a source tree of llama.cpp with its build/bin serves too"
)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """One installation. None: that part is not there."""

    server: Path
    quantize: Path | None
    convert_dir: Path | None  # holds CONVERT, CONVERT_LORA, conversion/ and gguf-py/, all of one version
    python: str  # that runs the scripts: has torch, transformers, numpy


def find() -> LlamaCpp:
    """llama.cpp from SHOESTRING_LLAMACPP alone where that is set, else beside this Python, else on PATH.

    Raises: MissingDependency with what was looked at and how to get it.
    """
    given = os.environ.get(VARIABLE)
    if given:
        home = _in_folder(Path(given).expanduser())
        if home is None:
            raise MissingDependency(f"{VARIABLE}={given} holds no llama-server; {GET_IT}")
        return home
    beside = Path(sys.prefix) / "llamacpp"
    home = _in_folder(beside) or _on_path()
    if home is None:
        raise MissingDependency(
            f"llama.cpp is not found ({VARIABLE} is not set, {beside} and PATH hold no llama-server); {GET_IT}"
        )
    return home


def converter() -> LlamaCpp:
    """llama.cpp with its convert scripts. Raises: MissingDependency."""
    home = find()
    if home.convert_dir is None:
        raise MissingDependency(
            f"{home.server} comes without {CONVERT} and {CONVERT_LORA}, which its sources hold; {GET_IT}"
        )
    return home


def _in_folder(folder: Path) -> LlamaCpp | None:
    """As installed by scripts/build_llamacpp.py, as built in a source tree, or the binaries alone."""
    for binaries in (folder / "bin", folder / "build" / "bin", folder):
        server = binaries / "llama-server"
        if server.is_file() and os.access(server, os.X_OK):
            break
    else:
        return None
    quantize = binaries / "llama-quantize"
    has_scripts = all((folder / name).is_file() for name in (CONVERT, CONVERT_LORA))
    own = folder / "venv" / "bin" / "python"
    return LlamaCpp(
        server=server.resolve(),
        quantize=quantize.resolve() if quantize.is_file() else None,
        convert_dir=folder.resolve() if has_scripts else None,
        python=str(own) if own.is_file() else sys.executable,
    )


def _on_path() -> LlamaCpp | None:
    server, quantize = shutil.which("llama-server"), shutil.which("llama-quantize")
    if server is None:
        return None
    return LlamaCpp(Path(server), Path(quantize) if quantize else None, None, sys.executable)
