"""Logs of inspect_ai (.eval archives and .json) as held-out rows with their targets and graders.

Source: inspect_ai 0.3.285, log/_log.py, log/_recorders/eval.py: an archive has header.json and samples/ID_epoch_N.json.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput, require
from .suites import Case, Left, Suite, read_text

ZSTANDARD = 93  # compression method of zip archives
LOCAL_HEADER = "<4s5H3I2H"
# Scorers by rule; match looks at the end unless told otherwise, includes does not mind case.
SCORERS = {"match": "ends-with", "includes": "icontains-any", "exact": "matches-any"}
BY_MODEL = {
    "model_graded_qa": "It answers the question as the reference answer does.",
    "model_graded_fact": "Its facts agree with the reference answer.",
}


def read(path: Path) -> Suite:
    """The suite of one log, each sample once whatever its epochs. Raises: BadInput."""
    header, samples = _archive(path) if zipfile.is_zipfile(path) else _plain(path)
    about = header.get("eval")
    if not isinstance(about, Mapping) or "task" not in about:
        raise BadInput(f"{path}: this is no log of inspect (it has no eval.task)")
    suite = Suite("inspect", path, str(about["task"]).split("/")[-1])
    scorers = [one for one in about.get("scorers") or [] if isinstance(one, Mapping)]
    if about.get("model_roles", {}).get("grader"):
        suite.judges = [str(about["model_roles"]["grader"].get("model"))]
    seen = set()
    for sample in samples:
        if sample.get("id") in seen:
            continue
        seen.add(sample.get("id"))
        suite.cases += _case(sample, scorers, suite)
    return suite


def _plain(path: Path) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    try:
        log = json.loads(read_text(path))
    except ValueError as error:
        raise BadInput(f"{path} is neither an .eval archive nor JSON: {error}") from error
    return (log, list(log.get("samples") or [])) if isinstance(log, Mapping) else ({}, [])


def _archive(path: Path) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            head = next((name for name in ("header.json", "_journal/start.json") if name in names), None)
            if head is None:
                raise BadInput(f"{path}: this archive has no header.json, so it is no log of inspect")
            samples = sorted(name for name in names if name.startswith("samples/") and name.endswith(".json"))
            return json.loads(_member(archive, head)), [json.loads(_member(archive, name)) for name in samples]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}; write it anew with 'inspect log convert --to json'") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive. Python reads Zstandard inside archives, which inspect writes, from 3.14 on."""
    info = archive.getinfo(name)
    if info.compress_type != ZSTANDARD or ZSTANDARD in getattr(zipfile, "compressor_names", {}):
        return archive.read(name)
    pyarrow = require("pyarrow", extra="data", purpose="reading an .eval archive")
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    _, *_, name_size, extra_size = struct.unpack(LOCAL_HEADER, file.read(struct.calcsize(LOCAL_HEADER)))
    file.seek(name_size + extra_size, 1)
    data = file.read(info.compress_size)
    try:
        whole: bytes = pyarrow.decompress(data, decompressed_size=info.file_size, codec="zstd", asbytes=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is damaged ({error})") from error
    if zlib.crc32(whole) != info.CRC:
        raise ValueError(f"{name} is damaged (its checksum differs)")
    return whole


def _case(sample: Mapping[str, Any], scorers: list[Mapping[str, Any]], suite: Suite) -> Iterator[Case]:
    place = f"sample {sample.get('id')}"
    given = sample.get("input")
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(turns, list) or not all(isinstance(turn.get("content"), str) for turn in turns):
        suite.left.append(Left(place, "sample", "its input holds more than text"))
        return
    if sample.get("choices"):
        letters = "\n".join(f"{chr(65 + i)}) {choice}" for i, choice in enumerate(sample["choices"]))
        turns = [*turns[:-1], {**turns[-1], "content": f"{turns[-1]['content']}\n\n{letters}"}]
    target = sample.get("target")
    targets = [text for text in (target if isinstance(target, list) else [target]) if text not in (None, "")]
    graders: list[dict[str, Any]] = []
    rubrics: list[str] = []
    for scorer in scorers:
        name = str(scorer.get("name")).split("/")[-1]
        if name == "choice":
            graders.append({"type": "matches-any", "value": targets})
        elif name in BY_MODEL:
            rubrics.append(BY_MODEL[name])
        elif name in SCORERS and not (scorer.get("options") or {}):
            graders.append({"type": SCORERS[name], "value": targets})
        elif name in SCORERS:
            suite.left.append(Left(place, f"scorer {name}", f"with options {json.dumps(scorer['options'])[:80]}"))
        else:
            suite.left.append(Left(place, f"scorer {name}", "is code, or measures what no grader here does"))
    reference = str(targets[0]) if targets else None
    yield Case(place, tuple((str(t["role"]), t["content"]) for t in turns), reference, tuple(graders), tuple(rubrics))
