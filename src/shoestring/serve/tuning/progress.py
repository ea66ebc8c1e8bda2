"""What a run folder says of a job: steps, results, money, when it will be done."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import read_json, read_whole_lines
from ...ledger import Ledger
from ...live import read_live
from ...runfolder import RunFolder

# Of the API's results file; accuracies of tokens are not computed here and stay empty.
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
MOST_TOLD_CODES = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run trained. scores: (arm, score, rows), the untrained model first.

    stopped: how training ended before its last step, empty where it did not; verdict: the run's reason.
    """

    rung: Path
    trained_tokens: int
    metric: str
    scores: tuple[tuple[str, float, int], ...]
    stopped: str
    verdict: str


class JobRun:
    """The run folder of a job; there is one rung."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = RunFolder(folder)
        self._num_steps = 0  # of the training, once it has said

    def rung(self) -> Path | None:
        """The rung's folder, None before training."""
        found = sorted(path.parent for path in self.folder.glob("rungs/*/inputs.json"))
        return found[0] if found else None

    def steps(self) -> list[dict[str, Any]]:
        """Step records, each step once, in order."""
        rung = self.rung()
        path = rung / "steps.jsonl" if rung else None
        if path is None or not path.is_file():
            return []
        by_step = {row["step"]: row for row in read_whole_lines(path) if isinstance(row, dict) and "step" in row}
        return [by_step[step] for step in sorted(by_step)]

    def planned(self) -> dict[str, Any] | None:
        """The plan of the rung, None before there is one."""
        record = self.records.record("plan.json")
        rungs = record["result"]["rungs"] if record else []
        return rungs[0] if rungs else None

    def num_steps(self) -> int | None:
        """Steps of the whole training: as it says itself, before that as the plan estimates; None before either."""
        live, rung = read_live(self.folder), self.rung()
        said = [task["total"] for task in (live or {}).get("tasks", ()) if task["label"].startswith("train ")]
        trained = self.records.record(f"rungs/{rung.name}/train.json") if rung else None
        if trained is not None and not trained["result"]["stopped_early"]:
            said = [trained["result"]["num_steps"]]
        self._num_steps = (said[0] if said else 0) or self._num_steps
        planned = self.planned()
        return self._num_steps or (planned["num_steps"] if planned else None)

    def left_out(self) -> dict[str, int]:
        """Rows that curation left out, by code."""
        record = self.records.record("curate.json")
        return dict(record["result"]["dropped_by_code"]) if record else {}

    def spent_usd(self) -> float:
        """By the ledger, a training under way included."""
        planned = self.planned()
        price = planned["price_usd_per_hour"] if planned else 0.0
        return Ledger(self.folder / "ledger.jsonl").spent_usd(live_usd_per_hour=price)

    def estimated_finish(self) -> int | None:
        """Unix seconds; None before there is a plan."""
        planned = self.planned()
        if planned is None:
            return None
        left_s = planned["eval_s"]["value"]
        steps = self.steps()
        if steps:
            left_steps = max(0, (self.num_steps() or 0) - steps[-1]["step"])
            left_s += left_steps * steps[-1]["wall_s"] / steps[-1]["step"]
        else:
            left_s += planned["train_s"]["value"]
        return int(time.time() + left_s)

    def outcome(self) -> Outcome | None:
        """What came out of it; None where nothing was trained to the end."""
        rung = self.rung()
        record = self.records.record(f"rungs/{rung.name}/train.json") if rung else None
        if rung is None or record is None:
            return None
        arms: list[dict[str, Any]] = []
        decided = self.records.record("decide.json")
        arms += decided["result"]["arms"] if decided else []
        scored = self.records.record(f"rungs/{rung.name}/eval.json")
        arms += [scored["result"]["arm"]] if scored else []
        scores = tuple((arm["arm"], arm["score"]["value"], arm["num_rows"]) for arm in arms)
        metric = arms[-1]["metric"] if arms else ""
        concluded = self.records.record("ladder.json")
        verdict = str(concluded["result"]["reason"]) if concluded else ""
        trained, stopped = record["result"], ""
        if trained["stopped_early"]:
            kept = f"step {trained['best_step']} is kept"
            stopped = f"Training ended early, as the score on the dev rows no longer rose: {kept}"
        return Outcome(rung, trained["num_train_tokens"], metric, scores, stopped, verdict)

    def checkpoints(self) -> list[dict[str, Any]]:
        """(step, metrics) of the adapters that training kept, newest first."""
        rung = self.rung()
        if rung is None:
            return []
        steps = {row["step"]: row for row in self.steps()}
        found = []
        for folder in rung.glob("best/step-*"):
            number = folder.name.removeprefix("step-")
            if number.isdigit() and (folder / "adapter_model.safetensors").is_file():
                row = steps.get(int(number), {})
                metrics = {"step": int(number), "train_loss": row.get("loss"), "full_valid_loss": row.get("dev_loss")}
                kept = {key: value for key, value in metrics.items() if value is not None}
                created_at = int((folder / "adapter_model.safetensors").stat().st_mtime)
                found.append({"step_number": int(number), "metrics": kept, "created_at": created_at})
        return sorted(found, key=lambda one: -one["step_number"])


def metrics_csv(steps: Sequence[dict[str, Any]]) -> bytes:
    """The results file of a job."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in steps:
        writer.writerow([row["step"], row["loss"], "", row.get("dev_loss", ""), ""])
    return out.getvalue().encode()


def failure(output: Path) -> tuple[str, str]:
    """(type, message) of the error that a run printed as JSON; empty where it printed none."""
    try:
        error = read_json(output)["error"]
        return str(error["type"]), str(error["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""
