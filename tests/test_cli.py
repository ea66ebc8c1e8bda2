"""The command line from outside: exit codes, one screen of words, and standard output that stays clean."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from shoestring.cli import listing
from shoestring.cli.main import run
from shoestring.cli.progress import Screen
from shoestring.cli.tables import arms_table, clip, far_table, table, tokens_text, usd_span, width_of
from shoestring.records import NOTE
from shoestring.runfolder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
SCREEN_LINES = 24
RUN_FILE = """\
name: trial
task: {kind: extract, bar: 0.85}
data: {train: train.jsonl}
models: [shoestring-1m]
"""
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89" * 8


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def rows(number: int) -> str:
    """JSONL rows of a small extraction task."""
    colours, things = ("red", "blue", "green", "black"), ("cup", "hat", "car", "pen", "bag")
    lines = []
    for i in range(number):
        colour, thing = colours[i % 4], things[i % 5]
        answer = json.dumps({"colour": colour, "thing": thing, "number": i})
        lines.append(json.dumps({"prompt": f"Order {i}: one {colour} {thing}, please.", "completion": answer}))
    return "\n".join(lines) + "\n"


def told(capfd: pytest.CaptureFixture[str], *words: str, head: str = "error: ") -> str:
    """Standard error of the last command from head on: at most a screen, no traceback, and holding words."""
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= SCREEN_LINES
    errors = captured.err[captured.err.index(head) :]
    for word in words:
        assert word in errors, errors
    return errors


# ---- the command line itself ----------------------------------------------------------------


def test_no_arguments_print_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: shoestring" in capfd.readouterr().out


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    import shoestring as package

    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"shoestring {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explian"], ["No such command 'explian'", "Did you mean", "'explain'", "shoestring --help"]),
        (["run"], ["Missing argument 'RUN'", "shoestring run --help"]),
        (["run", "x", "--jsn"], ["No such option", "--json"]),
        (["run", "x", "--runs-dir"], ["--runs-dir"]),
    ],
)
def test_usage_errors(arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    told(capfd, *words)


@pytest.mark.parametrize(
    "arguments", [["run", "--json"], ["run", "none.yaml", "--json"], ["explain", "baar", "--json"]]
)
def test_json_errors_are_one_object(arguments: list[str], here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    captured = capfd.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["exit_code"] == 2
    assert error["message"].splitlines()[0] in captured.err
    assert list(here.iterdir()) == []


def test_an_unforeseen_error_is_short_and_its_traceback_kept(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoestring.cli import running

    def broken(*_: Any) -> None:
        raise RuntimeError("the moon is full\nand more")

    monkeypatch.setattr(running, "open_run", broken)
    assert run(["report", "x"]) == 1
    message = told(capfd, "unexpected RuntimeError: the moon is full")
    assert "and more" not in message
    saved = list(here.glob("shoestring-error-*.txt"))
    assert len(saved) == 1
    assert str(saved[0]) in message
    assert "Traceback" in saved[0].read_text()
    assert run(["report", "x", "--debug"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_ctrl_c_is_exit_5_with_the_way_on(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoestring.cli import running

    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "open_run", pressed)
    assert run(["run", "run.yaml"]) == 5
    told(capfd, "run the same command again to continue", head="interrupted")


def test_a_reader_that_leaves_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -m shoestring explain | head -1; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(["bash", "-c", command], cwd=here, text=True, capture_output=True, env=env, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("key")


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RUN_FILE.replace("0.85", "1.5"), ["run.yaml:2", "task.bar = 1.5"]),
        (RUN_FILE + "modles: [embedded]\n", ["run.yaml:5", "'modles'", "did you mean 'models'"]),
        ("", ["run.yaml is empty", "mapping"]),
    ],
)
def test_a_wrong_run_file(text: str, words: list[str], here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "run.yaml").write_text(text)
    assert run(["run", "run.yaml"]) == 2
    told(capfd, *words)
    assert not (here / "runs").exists()


def test_a_missing_run_file_and_a_data_file_in_its_place(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "train.jsonl").write_text(rows(3))
    assert run(["run", "run.yaml"]) == 2
    told(capfd, "run.yaml: no such run file", "shoestring init DATA_FILE")
    assert run(["run", "train.jsonl"]) == 2
    told(capfd, "is a data file", "shoestring init train.jsonl")
    (here / "empty").mkdir()
    assert run(["run", "empty"]) == 2
    told(capfd, "empty is not a run folder")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["train.jsonl"]),
        (b"", ["train.jsonl", "empty"]),
        (PNG, ["train.jsonl"]),
        (b'{"prompt": "a", "completion": "{}"}\n', ["train.jsonl"]),
    ],
    ids=["missing", "empty", "png", "one row"],
)
@pytest.mark.parametrize("command", ["run", "curate", "init"])
def test_data_that_cannot_be_used(
    command: str, content: bytes | None, words: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (here / "train.jsonl").write_bytes(content)
    if command == "init" and content is not None and content.startswith(b"{"):
        return  # one row is enough to write a run file from
    (here / "trial.yaml").write_text(RUN_FILE)
    assert run([command, "train.jsonl" if command == "init" else "trial.yaml"]) == 2
    told(capfd, *words)


def test_an_unknown_model(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "train.jsonl").write_text(rows(200))
    (here / "run.yaml").write_text(RUN_FILE.replace("shoestring-1m", "embeded"))
    assert run(["plan", "run.yaml"]) == 2
    told(capfd, "embeded", "embedded")


def test_a_run_folder_that_cannot_be_made(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "train.jsonl").write_text(rows(200))
    (here / "run.yaml").write_text(RUN_FILE)
    (here / "file").write_text("")
    assert run(["curate", "run.yaml", "--runs-dir", str(here / "file")]) == 1
    told(capfd, "cannot write", str(here / "file"))
    assert run(["curate", "run.yaml", "--runs-dir", "/proc"]) == 1
    told(capfd, "cannot write /proc/trial")
    assert run(["runs", "--runs-dir", str(here / "file")]) == 2
    told(capfd, "is a file")


def test_a_disk_that_fills_up_leaves_nothing_half_written(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A limit on file size stands in for a full disk: the write fails in the middle, with EFBIG."""
    (here / "train.jsonl").write_text(rows(400))
    (here / "run.yaml").write_text(RUN_FILE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # Python ignores SIGXFSZ, so writes fail
    try:
        status = run(["curate", "run.yaml"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    told(capfd, "cannot write")
    assert not (here / "runs/trial/curate.json").exists()
    assert not [p for p in (here / "runs").rglob("*") if p.suffix == ".tmp"]
    assert run(["curate", "run.yaml", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["curate"]["counts"]["rows_in"] == 400


def test_what_out_chose_is_not_blamed_on_runs_dir(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.jsonl").write_text(rows(120))

    def refuse(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shoestring.files.tempfile.mkstemp", refuse)
    for arguments in (["init", "a.jsonl"], ["curate", "a.jsonl", "--out", "curated"]):
        assert run(arguments) == 1
        assert "--runs-dir" not in told(capfd, "permission denied", "--out")


def test_two_runs_in_one_folder(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "train.jsonl").write_text(rows(200))
    (here / "run.yaml").write_text(RUN_FILE)
    with RunFolder(here / "runs" / "trial").locked():
        assert run(["curate", "run.yaml"]) == 1
    told(capfd, "is in use by process", "wait for it, stop it, or give this run another name")
    assert run(["curate", "run.yaml"]) == 0


# ---- commands that work ---------------------------------------------------------------------


def test_init_writes_a_run_file_that_curates(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "my orders.jsonl").write_text(rows(200))
    assert run(["init", "my orders.jsonl", "--out", "sub/run.yaml"]) == 2
    told(capfd, "there is no folder sub", "mkdir -p sub")
    (here / "sub").mkdir()
    assert run(["init", "my orders.jsonl", "--out", "sub/run.yaml"]) == 0
    out = capfd.readouterr().out
    assert "extract" in out
    assert "shoestring run sub/run.yaml" in out
    text = (here / "sub/run.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=file://")
    assert "name: my-orders" in text
    assert '"../my orders.jsonl"' in text or "train: ../my orders.jsonl" in text
    assert run(["init", "my orders.jsonl", "--out", "sub/run.yaml"]) == 2
    told(capfd, "exists", "--force")
    assert run(["init", "my orders.jsonl", "--out", "sub/run.yaml", "--force", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["kind"] == "extract"
    assert run(["curate", "sub/run.yaml", "--json"]) == 0
    counts = json.loads(capfd.readouterr().out)["curate"]["counts"]
    kept = counts["rows_train"] + counts["rows_dev"] + counts["rows_eval"]
    assert counts["rows_in"] == 200 == kept + counts["dropped"]


def test_curate_into_a_folder_needs_no_run_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "a.jsonl").write_text(rows(120) + rows(10))  # ten exact duplicates
    assert run(["curate", "a.jsonl", "--out", "curated", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["counts"]["rows_in"] == 130
    assert result["counts"]["dropped"] == 10 == sum(result["dropped_by_code"].values())
    assert {p.name for p in (here / "curated").iterdir()} >= {
        "train.jsonl",
        "eval.jsonl",
        "dropped.jsonl",
        "receipt.json",
    }
    assert not (here / "runs").exists()
    assert run(["init", "curated", "--out", "next.yaml"]) == 0
    assert "\n  train: curated\n  eval: curated  #" in (here / "next.yaml").read_text()
    capfd.readouterr()
    assert run(["curate", "next.yaml", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)["curate"]["counts"]
    assert (again["rows_eval"], again["dropped"]) == (result["counts"]["rows_eval"], 0)
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("x")
    assert run(["curate", "a.jsonl", "--out", "mine"]) == 2
    told(capfd, "holds other files")
    assert run(["curate", "next.yaml", "--out", "new"]) == 2
    told(capfd, "next.yaml is a run file", "without --out")
    (here / "book.xlsx").write_bytes(b"PK\x03\x04 and so on")
    assert run(["curate", "book.xlsx", "--out", "new"]) == 2
    told(capfd, "save it as CSV")
    before = (here / "curated/review.csv").read_bytes()
    assert run(["curate", "curated", "--out", "curated", "--restore", "exact_duplicate"]) == 2
    told(capfd, "is in --out curated", "give another --out")
    assert (here / "curated/review.csv").read_bytes() == before and not (here / "new").exists()


def test_explain(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "task.bar"]) == 0
    out = capfd.readouterr().out
    assert "at least 0" in out
    assert "at most 1" in out
    assert run(["explain", "lora_rank", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["name"] == "train.lora_rank"
    assert run(["explain", "decide.endpoints.0.url"]) == 2
    told(capfd, "did you mean")
    assert run(["explain", "--schema"]) == 0
    assert json.loads(capfd.readouterr().out)["title"] == "RunConfig"
    assert run(["explain"]) == 0
    assert "decide.endpoints.timeout_s" in capfd.readouterr().out
    assert run(["explain", "traffic"]) == 0
    assert "traffic.prompt_tokens" in capfd.readouterr().out
    assert run(["explain", "train.start"]) == 0
    assert "default: empty" in capfd.readouterr().out


def test_a_place_for_checkpoints_is_tried_before_anything_is_spent(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "train.jsonl").write_text(rows(200))
    for place in ("train.jsonl", "nonsense://x"):  # a file, and no driver
        (here / "run.yaml").write_text(RUN_FILE + f"train: {{checkpoints: '{place}'}}\n")
        assert run(["run", "run.yaml"]) == 2
        told(capfd, "train.checkpoints", place)
        assert not list(here.glob("runs/*/data"))


def test_explain_says_where_a_runs_value_came_from(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "train.jsonl").write_text(rows(200))
    (here / "run.yaml").write_text(RUN_FILE + "train: {lora_rank: 4}\n")
    assert run(["explain", "train.lora_rank", "--run", "run.yaml"]) == 0
    assert "4 (from the run file)" in capfd.readouterr().out
    assert run(["explain", "seed", "--run", "run.yaml"]) == 0
    assert "0 (the default)" in capfd.readouterr().out
    assert run(["explain", "learning_rate", "--run", "run.yaml"]) == 0
    assert "shoestring plan run.yaml" in capfd.readouterr().out
    assert run(["plan", "run.yaml", "--json"]) == 0
    settings = json.loads(capfd.readouterr().out)["rungs"][0]["settings"]
    assert run(["explain", "learning_rate", "--run", "trial", "--json"]) == 0
    rungs = json.loads(capfd.readouterr().out)["run"]["rungs"]
    assert rungs[0]["value"] == settings["learning_rate"]["value"]
    assert rungs[0]["reason"] == settings["reasons"]["learning_rate"]
    assert run(["plan", "trial"]) == 0
    out = capfd.readouterr().out
    assert settings["reasons"]["learning_rate"] in out
    (here / "run.yaml").write_text(RUN_FILE + "train: {lora_rank: 8}\n")
    assert run(["explain", "train.lora_rank", "--run", "run.yaml"]) == 0
    out = capfd.readouterr().out
    assert "8 (from the run file)" in out
    assert "planned before the run file was changed" in out


def test_runs_lists_whole_and_broken_folders(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["runs"]) == 0
    assert "shoestring demo" in capfd.readouterr().out
    (here / "train.jsonl").write_text(rows(200))
    (here / "run.yaml").write_text(RUN_FILE)
    assert run(["curate", "run.yaml"]) == 0
    for name, text in (("torn", "name: ["), ("strange", "name: strange\n")):
        (here / "runs" / name).mkdir()
        (here / "runs" / name / "run.yaml").write_text(text)
    (here / "runs" / "bare").mkdir()
    (here / "runs" / "note.txt").write_text("not a run")
    capfd.readouterr()
    assert run(["runs", "--json"]) == 0
    listed = {r["name"]: r for r in json.loads(capfd.readouterr().out)["runs"]}
    assert set(listed) == {"trial", "torn", "strange", "bare"}
    assert listed["trial"]["broken"] is None
    assert listed["trial"]["stage"] == "curate"
    baseline = {"arm": "zero", "score": 0.5, "low": 0.4, "high": 0.6}
    unfinished = {**listed["trial"], "stage": "decide", "best": baseline}
    assert listing._row(unfinished)[1:4] == ("decide", "unfinished", "-")  # a baseline's score is not the run's
    assert listing._row({**unfinished, "stage": "not started"})[1:4] == ("not started", "", "-")
    assert all(listed[name]["broken"] for name in ("torn", "strange", "bare"))
    assert run(["runs"]) == 0
    assert capfd.readouterr().out.count("broken") == 3


def test_report_and_export_before_anything_ran(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "run.yaml").write_text(RUN_FILE)
    assert run(["report", "run.yaml"]) == 2
    told(capfd, "no such run folder yet", "shoestring run run.yaml")
    assert run(["export", "run.yaml"]) == 2
    told(capfd, "no rung is trained and scored yet")


def test_ctrl_c_while_a_class_is_made_is_exit_5() -> None:
    """Python ends by the signal where KeyboardInterrupt once left an exec of source, whoever caught it then."""
    code = """if True:
        from shoestring.cli import main
        main._call = lambda arguments: exec("raise KeyboardInterrupt")
        main.main(["models"])"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 5 and "run the same command again" in done.stderr, done


def test_sigterm_ends_resumably(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SIGTERM in the middle of a run is exit 5, and what was finished is not done again."""
    (here / "train.jsonl").write_text(rows(400))
    (here / "run.yaml").write_text(RUN_FILE)
    finished = here / "runs/trial/curate.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "shoestring", "decide", "run.yaml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        while not finished.exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.terminate()
        said = process.stderr.read().decode()
    assert process.returncode == 5 and "run the same command again to continue" in said, said
    first = finished.read_text()
    assert run(["curate", "run.yaml", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["stage"] == "curate"
    assert finished.read_text() == first


# ---- what is drawn --------------------------------------------------------------------------


def test_lines_off_a_terminal_are_few_and_say_how_long() -> None:
    clock = [0.0]
    stream = io.StringIO()
    with Screen(stream, lambda: clock[0], heartbeat_s=None) as screen:
        screen.progress("quick", 1, 2)
        screen.progress("quick", 2, 2)
        for done in range(101):
            clock[0] = float(done)
            screen.progress("training", done, 100)
        screen.log("Rung done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training: 10/100, about 90 s left"
    assert len(lines) == 10
    assert lines[-1] == "Rung done"


def test_what_work_has_cost_so_far_stands_in_its_line() -> None:
    """The note changes; it is the same task all the same."""
    clock = [0.0]
    stream = io.StringIO()
    with Screen(stream, lambda: clock[0], heartbeat_s=None) as screen:
        for done in range(12):
            clock[0] = float(done)
            screen.progress(f"train tiny{NOTE}${done} spent of $20 predicted", done, 20)
    assert stream.getvalue() == "train tiny: 10/20, about 10 s left, $10 spent of $20 predicted\n"


def test_what_counts_nothing_shows_no_count() -> None:
    clock = [0.0]
    stream = io.StringIO()
    with Screen(stream, lambda: clock[0], heartbeat_s=None) as screen:
        screen.progress("tickets: convert", 0, None)
        clock[0] = 13.0
        screen._line()
    assert stream.getvalue() == "tickets: convert: 13 s so far\n"


def test_a_stage_that_says_nothing_for_long_still_shows_life() -> None:
    ticks = iter(range(0, 10_000, 15))
    stream = io.StringIO()
    with Screen(stream, lambda: float(next(ticks)), heartbeat_s=0.01) as screen:
        screen.progress("generate", 0, 100)
        deadline = time.monotonic() + 10
        while not stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue().startswith("generate: 0/100, ")
    assert "so far" in stream.getvalue()


def test_bars_on_a_terminal_come_late_and_leave_nothing_behind() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Screen(stream) as screen:
        screen.progress("quick", 1, 2)
        screen.progress("quick", 2, 2)
        screen.log("done")
    assert "quick" not in stream.getvalue()
    assert "done" in stream.getvalue()


ARMS = [
    {"arm": "zero-shot shoestring-1m", "score": 0.1, "low": 0.05, "high": 0.15, "wall_s": 12.34, "cost_usd": 0.0002},
    {"arm": "lora shoestring-3m", "score": 0.9, "low": 0.87, "high": 0.93, "wall_s": 123.4, "cost_usd": 0.004},
]
ARMS = [{**arm, "num_rows": 100, "num_prompt_tokens": 21_200, "num_completion_tokens": 450} for arm in ARMS]


def test_the_table_a_run_ends_with() -> None:
    lines = arms_table(ARMS, "leaf_f1", "lora shoestring-3m").splitlines()
    assert lines[0].split() == [
        "arm",
        "leaf_f1",
        "(95",
        "%",
        "interval)",
        *["tokens", "a", "row", "seconds", "dollars"],
    ]
    assert lines[1] == "zero-shot shoestring-1m  0.100 [0.050, 0.150]          212 + 4     12.3  $0.0002"
    assert tokens_text(0, 0, 100) == "-"
    assert lines[2] == "lora shoestring-3m       0.900 [0.870, 0.930]          212 + 4      123  $0.0040  <- chosen"


def test_scores_on_rows_far_from_training_rows_follow_where_they_differ() -> None:
    arms = [{**arm, "num_rows": 100, "far": {"num_rows": 100, "score": 0.9, "low": 0.8, "high": 0.95}} for arm in ARMS]
    assert far_table(arms) == far_table([{**arm, "far": None} for arm in arms]) == ""
    arms[0]["far"] = {"num_rows": 0, "score": None, "low": None, "high": None}
    arms[1]["far"] = {"num_rows": 60, "score": 0.8, "low": 0.7, "high": 0.875}
    assert "0 of 100" in far_table(arms).splitlines()[1]
    assert "0.800 [0.700, 0.875]   60 of 100" in far_table(arms)


@pytest.mark.parametrize("width", [70, 80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    long = [{**arm, "arm": arm["arm"] + " of an organisation with a very long name / 模型" * 2} for arm in ARMS]
    lines = arms_table(long, "leaf_f1", None, width=width).splitlines()
    assert max(width_of(line) for line in lines) <= width
    assert all("…" in line for line in lines[1:])


def test_a_prediction_without_spread_is_one_number() -> None:
    assert usd_span({"value": 1e-6, "low": 1e-7, "high": 1e-5}) == "<$0.0001"
    assert usd_span({"value": 2.0, "low": 1.0, "high": 4.0}) == "$2.00 ($1.00 to $4.00)"


def test_clip_keeps_both_ends_and_the_width() -> None:
    assert clip("shoestring", 20) == "shoestring"
    assert clip("shoestring", 5) == "sh…ng"
    assert clip("模型模型模型", 7) == "模…型" or width_of(clip("模型模型模型", 7)) <= 7
    for width in range(1, 12):
        assert width_of(clip("模型abc模型def", width)) <= width


def test_right_columns_are_flush() -> None:
    assert table(("a", "n"), [("x", "5"), ("yy", "50")], right=(1,)).splitlines() == ["a    n", "x    5", "yy  50"]
