"""GGUF files that a server keeps in RUNS_DIR/.serving/gguf/BASE: found again by content, removed with what they are of.

BASE is a hash of the base's weights; a base's file begins with "base-", an adapter's is named by hashes of its weights
and of its configuration.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from ..files import sha256_file
from ..records import Log
from ..train.watch import WEIGHTS
from ..units import gib
from .adapters import CONFIG
from .gguf import SECONDS

OF_ADAPTER = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}\.gguf")
UNFINISHED = (".gguf-*", ".*.gguf.partial", "base")  # beside the files: of conversions under way, or killed
GRACE_S = 86_400.0  # another server of this machine may have started with a file; each start marks those it uses


def adapter_file(made: Path, folder: Path) -> Path:
    """Where the GGUF file of the adapter in folder is, or will be."""
    return made / f"{sha256_file(folder / WEIGHTS)[:16]}-{sha256_file(folder / CONFIG)[:8]}.gguf"


def tidy(kept: Path, made: Path, runs_dir: Path, opened: Iterable[Path], log: Log) -> None:
    """Remove files of adapters that no run of runs_dir has any more, and what killed conversions and servers left.

    made: the folder of kept for the base that is served; opened: folders of the adapters that are. Files of bases
    stay, since a base belongs to no run: the log says what those of others take.
    """
    now, num, num_bytes, other_bytes = time.time(), 0, 0, 0
    for file in [path for pattern in UNFINISHED for path in kept.glob(f"*/{pattern}")]:
        if now - file.lstat().st_mtime > 2 * SECONDS:
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)
    for file in kept.parent.glob("llama-server-*.log*"):
        if now - file.stat().st_mtime > GRACE_S:
            file.unlink(missing_ok=True)
    own = {adapter_file(made, folder) for folder in opened}
    for file in own:
        if file.is_file():
            os.utime(file)
    old = [
        file
        for file in kept.glob("*/*.gguf")
        if OF_ADAPTER.fullmatch(file.name) and file not in own and now - file.stat().st_mtime > GRACE_S
    ]
    if old:
        folders = [*runs_dir.glob("*/rungs/*/adapter"), *runs_dir.glob("*/rungs/*/best/step-*")]
        whole = [folder for folder in folders if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()]
        names = {adapter_file(made, folder).name for folder in whole}
        for file in old:
            if file.name not in names:
                num, num_bytes = num + 1, num_bytes + file.stat().st_size
                file.unlink()
    if num:
        log(f"Removed {num} GGUF files ({gib(num_bytes)} GiB) of adapters that no run here has any more")
    for file in kept.glob("*/base-*.gguf"):
        other_bytes += file.stat().st_size if file.parent != made else 0
    if other_bytes:
        log(
            f"GGUF files of other bases take {gib(other_bytes)} GiB in {kept}; a folder there may be deleted while no "
            "server uses it, and is made again"
        )
