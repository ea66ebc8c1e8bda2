"""The README's commands parse, its files exist, and its tour is walked for real on small data.

Blocks fenced as ```console hold commands after `$ `; those under the heading with "tour" are executed
in a folder that holds examples/ alone, except in blocks fenced ```console no-run; what `init` writes
is cut down to seconds before it is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from shoestring.cli.commands import app
from shoestring.cli.main import run

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SHELLS = ("console", "sh", "bash", "shell")
EMBEDDED = "models: [embedded]"
SMALL = """
curate: {max_train_rows: 48, max_eval_rows: 20}
decide: {max_rows: 20, arms: [zero_shot]}
train: {num_epochs: 0.25, num_evals: 1}
"""


@dataclass(frozen=True)
class Command:
    """One command line of the README."""

    words: tuple[str, ...]
    heading: str
    fence: str
    line: int


def commands() -> Iterator[Command]:
    """Every command in a shell block, continuation lines joined, comments dropped."""
    heading, fence, pending = "", None, ""
    for number, line in enumerate(README.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            continue
        if fence is None:
            heading = line.lstrip("#").strip() if line.startswith("#") else heading
            continue
        if (fence.split() or [""])[0] not in SHELLS:
            continue
        if fence.startswith("console") and not pending and not line.startswith("$ "):
            continue  # output
        text = pending + line.removeprefix("$ ")
        if text.endswith("\\"):
            pending = text[:-1]
            continue
        pending = ""
        for part in re.split(r"\s*(?:&&|;)\s*", text):
            words = shlex.split(part, comments=True)
            if words:
                yield Command(tuple(words), heading, fence, number)


def of(program: str) -> list[Command]:
    return [c for c in commands() if c.words[0] == program]


def test_readme_shows_the_two_commands() -> None:
    assert any(c.words[:2] == ("make", "demo") for c in of("make"))
    assert any(c.words[:2] == ("shoestring", "run") for c in of("shoestring"))


def test_shoestring_commands_parse() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for command in of("shoestring"):
        name, arguments = command.words[1], [w for w in command.words[2:] if not w.startswith((">", "2>", "|"))]
        if name.startswith("-"):
            continue
        assert name in known, f"README.md:{command.line}: no command {name!r}"
        if "--help" not in arguments:
            known[name].make_context(name, list(arguments))  # raises on an unknown option or a missing argument


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in of("make"):
        for word in command.words[1:]:
            assert "=" in word or word in targets, f"README.md:{command.line}: no make target {word!r}"


def test_paths_exist() -> None:
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|docs|examples|bench|scripts|tests)/[\w./-]*)`", text)
    linked = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    in_commands = [w for c in commands() for w in c.words if w.startswith(("examples/", "docs/", "scripts/"))]
    missing = [path for path in (*named, *linked, *in_commands) if not (ROOT / path).exists()]
    assert not missing


def test_the_tour_can_be_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    tour = [c for c in of("shoestring") if "tour" in c.heading.lower() and "no-run" not in c.fence]
    assert tour, "README.md has no commands under a heading with 'tour'"
    for command in tour:
        status = run(list(command.words[1:]))
        assert status in (0, 3), f"README.md:{command.line}: {' '.join(command.words)} gave exit code {status}"
        if command.words[1] == "init":
            for written in tmp_path.glob("*.yaml"):
                text = written.read_text(encoding="utf-8")
                assert EMBEDDED in text
                written.write_text(text.replace(EMBEDDED, "models: [shoestring-1m]") + SMALL, encoding="utf-8")
