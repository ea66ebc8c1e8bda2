"""Files to a host and back: only what lacks, each whole or not at all, with the paths of the place they come to."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import load_run_file
from ..files import read_json, write_json, write_whole
from ..records import Log
from ..train.locate import with_folders
from . import agent, needs
from .records import Launch
from .ssh_host import Python

FETCHED_AS = ".fetched.json"  # in the run folder: what was brought, as it was there
TOLD, MOST_TOLD_BYTES = (".json", ".yaml", ".html", ".md"), 64 << 20
INTERNAL = {"best", "checkpoints"}  # with sums of their own, and read by training alone
NOT_SENT = ("launches", "export", "superseded", "launch.json", "launches.jsonl", "report.html")


def send_files(there: Python, launch: Launch, mirror: str, log: Log) -> None:
    """Run file, data, models: below mirror under their paths here; what is there already stays."""
    run_file = Path(launch.run_file)
    config = with_folders(load_run_file(run_file), run_file.parent)
    found: dict[str, Path] = {}
    for path in needs.files(config, run_file):
        inside = [path / name for name in agent.listing(path)] if path.is_dir() else [path]
        found |= {str(each).lstrip("/"): each for each in inside}
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / run_file.name
        own.write_text(for_the_host(run_file, found, mirror, launch.options.get("usd_per_hour")), encoding="utf-8")
        found[launch.run_file.lstrip("/")] = own
        send(there, found, mirror, log)


def send(there: Python, found: dict[str, Path], root: str, log: Log) -> None:
    """Those of found that root lacks; after a lost connection, those it still lacks."""
    prints = {name: agent.file_print(path) for name, path in found.items()}

    def once() -> None:
        wanted = there.ask("missing", root, given=prints)
        if not wanted:
            return
        num_bytes = sum(found[name].stat().st_size for name in wanted)
        log(f"sending {len(wanted)} files, {num_bytes / 1e6:,.1f} MB, to {there.host.target}")
        with tempfile.TemporaryFile() as stream:
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for name in wanted:
                    archive.add(found[name].resolve(), arcname=name, recursive=False)
            there.host.once(there.line("receive", root), stream)

    there.host.persist(once)


def for_the_host(run_file: Path, found: dict[str, Path], mirror: str, usd_per_hour: float | None = None) -> str:
    """The run file's text, with absolute paths of what is sent put below mirror; relative ones hold there as here.

    usd_per_hour: the price by which the run there guards its budget, where the run file does not say one.
    """
    text = run_file.read_text(encoding="utf-8")
    sent = [f"/{name}" for name in found]

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        if isinstance(value, str) and value.startswith(("/", "~/")):
            full = str(Path(value).expanduser())
            fixed = full.split("*")[0].split("?")[0].split("[")[0]  # of a pattern, what comes before it varies
            if any(path.startswith(fixed) for path in sent):
                return mirror + full
        return value

    raw = yaml.safe_load(text)
    there = moved(raw)
    if usd_per_hour is not None:
        there["market"] = {"price_usd_per_hour": usd_per_hour, **(raw.get("market") or {})}
    return text if there == raw else yaml.safe_dump(there, sort_keys=False, allow_unicode=True)


def send_run_folder(there: Python, local: Path, remote: str, log: Log) -> None:
    """What was done here goes along, where the host has nothing of the run yet."""
    if not (local / "curate.json").is_file() or there.ask("list", remote):
        return
    names = [name for name in agent.listing(local) if Path(name).parts[0] not in NOT_SENT]
    send(there, {name: local / name for name in names}, remote, log)


def fetch(there: Python, remote: str, local: Path, moved: Mapping[str, str], log: Log) -> None:
    """Bring the files of a folder that changed since they were last brought; paths in records become those here."""
    memory = local / FETCHED_AS

    def once() -> None:
        listed: dict[str, list[Any]] = there.ask("list", remote)
        brought = read_json(memory) if memory.is_file() else {}
        wanted = [name for name, mark in listed.items() if brought.get(name) != mark or not (local / name).is_file()]
        if not wanted:
            return
        log(f"bringing {len(wanted)} files, {sum(listed[name][0] for name in wanted) / 1e6:,.1f} MB")
        try:
            data = json.dumps(wanted).encode()
            there.host.save_to(there.line("send", remote), data, lambda stream: agent.receive(local, stream))
        finally:  # what came before the connection was lost need not come again
            came = [n for n in wanted if (local / n).is_file() and agent.file_print(local / n) == listed[n]]
            told_here(local, came, moved)
            write_json(memory, {**brought, **{name: listed[name] for name in came}})

    there.host.persist(once)


def told_here(local: Path, names: Iterable[str], moved: Mapping[str, str]) -> None:
    """Places on the host as those on this machine, in what was brought; records know the files that this changes."""
    sums: dict[str, str] = {}
    for name in names:
        path = local / name
        is_ours = path.suffix in TOLD and not INTERNAL & set(path.parts) and path.stat().st_size <= MOST_TOLD_BYTES
        text = here = path.read_text(encoding="utf-8", errors="surrogatepass") if is_ours else ""
        for there_place, here_place in moved.items():
            here = here.replace(there_place, here_place)
        if here != text:
            before = agent.file_print(path)[1]
            write_whole(path, here)
            sums[before] = agent.file_print(path)[1]
    if not sums:
        return
    for record in local.glob("rungs/*/train.json"):
        text = here = record.read_text(encoding="utf-8")
        for before, after in sums.items():
            here = here.replace(before, after)
        if here != text:
            write_whole(record, here)
    if (local / "export.json").is_file():
        exported = read_json(local / "export.json")
        file_bytes = exported["result"].get("file_bytes", {})
        there_now = {name: (local / name).stat().st_size for name in file_bytes if (local / name).is_file()}
        write_json(local / "export.json", {**exported, "result": {**exported["result"], "file_bytes": there_now}})
