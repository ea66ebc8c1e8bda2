"""A rung's held-out answers: kept as they come, never made twice, and given up where the bar is out of reach."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.evaluate.generation import LocalGenerator
from shoestring.files import read_json, read_whole_lines, write_jsonl
from shoestring.recipe import Run
from shoestring.stages import answering

ROOT = Path(__file__).resolve().parent.parent
RUNG = Path("rungs/shoestring-1m")


def write_run(folder: Path, *, bar: float = 0.5, num_rows: int = 60, more: str = "") -> Path:
    """Rows of which few can be right after hardly any training; the last eight repeat the prompts before them."""
    texts = [f"thing {i} has the number {i * 7919 % 1000}" for i in range(num_rows)]
    rows = [{"prompt": text, "completion": text[-3:]} for text in texts]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "eval.jsonl", [{"prompt": f"say {t}", "completion": t[-3:]} for t in texts])
    path = folder / "run.yaml"
    path.write_text(
        f"name: kept\ntask: {{kind: generate, metric: exact_match, bar: {bar}, max_new_tokens: 12}}\n"
        "data: {train: rows.jsonl, eval: eval.jsonl}\nmodels: shoestring-1m\ndecide: {arms: []}\n"
        "train: {num_epochs: 0.2, num_evals: 1, lora_rank: 4, num_threads: 1}\nevaluate: {regression: false}\n" + more
    )
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained rung, not yet evaluated."""
    base = tmp_path_factory.mktemp("kept")
    Run.from_file(write_run(base), runs_dir=base / "runs").execute(until="train")
    return base


def scores(folder: Path) -> dict:
    arm = read_json(folder / RUNG / "eval.json")["result"]["arm"]
    kept = ("id", "prompt", "output", "score", "num_prompt_tokens", "num_completion_tokens", "failure")
    return {"rows": [{k: row[k] for k in kept} for row in arm["rows"]], "score": arm["score"], "num": arm["num_rows"]}


KILLED = """
import os, signal, sys
from pathlib import Path
from shoestring.decide.answers import AnswerFile
from shoestring.recipe import Run

whole = AnswerFile.add
def add(self, *args, **about):
    whole(self, *args, **about)
    if len(self._found) == 17:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerFile.add = add
Run.from_file(sys.argv[1], runs_dir=Path(sys.argv[2])).execute(until="eval")
"""


def test_a_killed_evaluation_goes_on_and_makes_no_answer_twice(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for place in (whole, cut):
        shutil.copytree(trained, place)
    Run.from_file(whole / "run.yaml", runs_dir=whole / "runs").execute(until="eval")

    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, cut / "run.yaml", cut / "runs"], env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder = cut / "runs/kept"
    assert not (folder / RUNG / "eval.json").exists()
    kept = read_whole_lines(folder / RUNG / answering.ANSWERS)
    assert len(kept) == 17

    asked: list[int] = []
    generate = LocalGenerator.generate

    def counted(self, prompts, *args, **named):
        asked.append(len(set(prompts)))
        return generate(self, prompts, *args, **named)

    monkeypatch.setattr(LocalGenerator, "generate", counted)
    run = Run.from_file(cut / "run.yaml", runs_dir=cut / "runs")
    run.execute(until="eval")
    assert scores(folder) == scores(whole / "runs/kept")
    arm = read_json(folder / RUNG / "eval.json")["result"]["arm"]
    assert sum(asked) == arm["num_rows"] - 17
    lines = read_whole_lines(folder / RUNG / answering.ANSWERS)
    assert len({line["request"] for line in lines}) == len(lines) == arm["num_rows"]
    # What the killed session spent on its answers is in the arm's seconds and, once, in the ledger.
    spent = sum(line["answer"]["latency_s"] for line in kept)
    assert arm["details"]["unpaid_s"] == pytest.approx(spent) and arm["details"]["eval_s"] > spent
    (entry,) = [e for e in run.ledger.entries() if e["stage"] == "eval"]
    assert entry["actual"]["s"] > spent

    # A bar that cannot be reached now is another evaluation: it costs no answer.
    asked.clear()
    (cut / "run.yaml").write_text((cut / "run.yaml").read_text().replace("bar: 0.5", "bar: 0.6"))
    run = Run.from_file(cut / "run.yaml", runs_dir=cut / "runs")
    run.execute(until="eval")
    assert sum(asked) == 0 and scores(folder)["rows"] == scores(whole / "runs/kept")["rows"]
    assert "unpaid_s" not in read_json(folder / RUNG / "eval.json")["result"]["arm"]["details"]


def test_a_rung_that_cannot_reach_the_bar_is_given_up(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(answering, "LOOK_ROWS", 12)
    run = Run.from_file(tmp_path / "run/run.yaml", runs_dir=tmp_path / "run/runs")
    run.execute(until="eval")
    arm = read_json(run.folder / RUNG / "eval.json")["result"]["arm"]
    assert arm["num_rows"] < 60 and arm["num_rows"] + arm["details"]["num_left"] == 60
    assert "given up after" in arm["details"]["given_up"] and arm["score"]["high"] < 0.5
    places = [row["id"] for row in arm["rows"]]
    assert len(read_whole_lines(run.folder / RUNG / answering.ANSWERS)) == len(places)
    order = [json.loads(line)["id"] for line in (run.folder / "data/eval.jsonl").read_text().splitlines()]
    assert places == [one for one in order if one in places] != order[: len(places)], "a random sample in order"

    # Asked for every row, the rest is answered and no row again.
    text = (tmp_path / "run/run.yaml").read_text()
    (tmp_path / "run/run.yaml").write_text(text.replace("regression: false", "regression: false, give_up_early: false"))
    run = Run.from_file(tmp_path / "run/run.yaml", runs_dir=tmp_path / "run/runs")
    run.execute(until="eval")
    assert read_json(run.folder / RUNG / "eval.json")["result"]["arm"]["num_rows"] == 60
    assert len(read_whole_lines(run.folder / RUNG / answering.ANSWERS)) == 60
