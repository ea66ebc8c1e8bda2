"""`shoestring label`: a person's yes and no to answers of a run, on the terminal by keystrokes, or on a page."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunFolderError
from .output import emit, say, warn
from .running import open_run
from .tables import score_text

if TYPE_CHECKING:
    from ..evaluate.judge.labelling import Item, Labelling
    from ..recipe import Run
    from ..records import ArmScore
    from ..web.site import Site

PAIR_KEYS = {"a": "A", "b": "B", "t": "tie", "1": "A", "2": "B", "0": "tie"}
KEYS = "y yes, n no, s cannot say, u undo, q stop"
KEYS_OF_PAIRS = "a A is better, b B is better, t tie, s cannot say, u undo, q stop"
MAX_WIDTH = 100


def command(
    target: str, arm_names: Sequence[str], num_rows: int, is_page: bool, port: int, runs_dir: Path, is_json: bool
) -> int:
    """Label until enough, the end, or the person stops; then calibrate what is recorded."""
    from ..stages.labelling import open_session

    run = open_run(target, runs_dir)
    session, chosen = open_session(run, arm_names)
    if is_page:
        _page(run, arm_names, num_rows, port)
        session, chosen = open_session(run, arm_names)
    else:
        with _keystrokes():
            _terminal(session, num_rows)
    return _finish(run, session, chosen, is_json)


def _page(run: Run, arm_names: Sequence[str], num_rows: int, port: int) -> None:
    """The page of `shoestring ui` at the run's labels, until Ctrl-C. Raises: BadInput, MissingDependency."""
    from .ui import serve_until_ctrl_c

    def ready(site: Site) -> None:
        from ..web.label_page import label_address

        address = site.url_of(label_address(run.folder.name, arm_names, num_rows))
        warn(f"Open {address}\nEach label is kept as it is given. Ctrl-C here ends it and takes them into the scores.")

    serve_until_ctrl_c(run.folder.parent, port, ready, "shoestring label --page")


# ---- terminal -----------------------------------------------------------------------------------


def _terminal(session: Labelling, num_rows: int) -> None:
    """One keystroke an answer (one a criterion); blind to arm and judge."""
    while session.num_rows < num_rows:
        item = session.next()
        if item is None:
            warn("No row is left.")
            return
        _show(session, item, num_rows)
        said = _ask(session)
        if said is None:
            return
        if said == "undo":
            if session.undo() is None:
                warn("Nothing to take back.")
            continue
        session.say(item, said)


def _ask(session: Labelling) -> Any:
    """What is said of one item: a label, `skipped`, "undo", or None to stop."""
    from ..evaluate.judge.labels import SKIPPED

    said: list[bool] = []
    is_pair = session.config.mode == "pairwise"
    while is_pair or len(said) < len(session.criteria):
        if not is_pair:
            number = f"{len(said) + 1}/{len(session.criteria)} " if len(session.criteria) > 1 else ""
            warn(f"{number}{session.criteria[len(said)]}")
        key = _key(KEYS_OF_PAIRS if is_pair else KEYS)
        if key in ("q", ""):
            return None
        if key == "s":
            return SKIPPED
        if key == "u":
            if not said:
                return "undo"
            said.pop()
        elif is_pair and key in PAIR_KEYS:
            return PAIR_KEYS[key]
        elif not is_pair and key in ("y", "n"):
            said.append(key == "y")
    return said


def _key(hint: str) -> str:
    """One keystroke, lower case; of a pipe the next character; empty at the end."""
    if not sys.stdin.isatty():
        while (char := sys.stdin.read(1)).isspace():
            pass
        return char.lower()
    print(f"  [{hint}] ", end="", file=sys.stderr, flush=True)
    try:
        char = _pressed()
    except KeyboardInterrupt:
        char = "q"
    print(char if char.isprintable() else "", file=sys.stderr)
    return char.lower()


def _pressed() -> str:
    try:
        import msvcrt
    except ImportError:
        return os.read(sys.stdin.fileno(), 1).decode("ascii", "replace")
    return str(msvcrt.getwch())  # type: ignore[attr-defined]


@contextlib.contextmanager
def _keystrokes() -> Iterator[None]:
    """The terminal gives each key as it is pressed, keys pressed ahead included; Ctrl-C stays what it is."""
    try:
        import termios
        import tty
    except ImportError:  # Windows reads keys as they are
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _show(session: Labelling, item: Item, num_rows: int) -> None:
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    lines = ["", f"── {session.num_rows + 1} of {num_rows} ".ljust(width, "─")]
    for role, text in item.turns:
        lines += _block("request" if len(item.turns) == 1 else role, text, width)
    if item.reference is not None:
        lines += _block("reference", item.reference, width)
    for name, text in zip(("A", "B") if len(item.answers) > 1 else ("ANSWER",), item.answers, strict=True):
        lines += _block(name, text or "(empty)", width)
    warn("\n".join(lines))


def _block(name: str, text: str, width: int) -> list[str]:
    """A name, and the text under it, indented; control characters of the text are shown, not obeyed."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    lines = [part for line in plain.splitlines() or [""] for part in textwrap.wrap(line, width - 2) or [""]]
    return [f"{name}:", *(f"  {line}" for line in lines)]


# ---- what comes out -----------------------------------------------------------------------------


def _finish(run: Run, session: Labelling, names: Sequence[str], is_json: bool) -> int:
    """Calibrate the records by the labels, and say what they show."""
    from ..evaluate.judge.calibrate import MIN_LABELS
    from ..stages.labelling import take_in

    try:
        arms = take_in(run)
    except RunFolderError as error:
        warn(f"note: labels are kept; scores are calibrated by the next shoestring run ({error})")
        arms = {}
    judged = {name: arms[name].details["judge"] for name in names if name in arms}
    if is_json:
        emit(
            {
                "folder": str(run.folder),
                "labels": str(session.path),
                "num_rows": session.num_rows,
                "num_skipped": session.num_skipped,
                "arms": [
                    {
                        "arm": name,
                        "score": arms[name].score.value,
                        "low": arms[name].score.low,
                        "high": arms[name].score.high,
                        **{
                            key: judge[key]
                            for key in ("is_calibrated", "num_labels", "uncalibrated", "agreement", "calibration")
                        },
                    }
                    for name, judge in judged.items()
                ],
            }
        )
        return 0
    say(f"{session.num_rows:,} rows labelled, {session.num_skipped:,} passed over; kept in {session.path}")
    for name, judge in judged.items():
        say(told(name, arms[name], judge))
    if session.num_rows < MIN_LABELS:
        say(f"{MIN_LABELS} labels of an arm are the least that calibrate a judge: shoestring label {run.folder}")
    else:
        say(f"The verdict is taken anew, and nothing is generated or judged again, by: shoestring run {run.folder}")
    return 0


def told(name: str, arm: ArmScore, judge: dict[str, Any]) -> str:
    """An arm's labels in a line or two."""
    from ..records import to_json

    score = score_text(to_json(arm.score))
    text = f"{name}: {score}" + (
        f", calibrated by {judge['num_labels']} labels (judge alone: {score_text(judge['uncalibrated'])})"
        if judge["is_calibrated"]
        else f", not calibrated ({judge['num_labels']} labels)"
    )
    agreed = judge["agreement"]
    if agreed:
        rates = [f"{words} {agreed[key]['value']:.2f}" for key, words in RATES.items() if agreed[key]]
        text += f"\n  judge and human agree on {agreed['observed']:.0%} (AC1 {agreed['gwet_ac1']:.2f}"
        text += f", kappa {agreed['cohen_kappa']:.2f}); {', '.join(rates)}"
    if judge["num_stale_labels"]:
        text += f"\n  {judge['num_stale_labels']} labels are of earlier answers and do not count"
    return text


RATES = {"sensitivity": "passes of what a human passes", "specificity": "fails of what a human fails"}
