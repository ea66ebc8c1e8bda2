"""The main path: load -> curate -> split -> decide -> plan -> (train -> evaluate) a rung -> export -> report.

Read this file as the program's table of contents. A stage whose record is in the run folder is not
run again, so the same call continues a run that was interrupted. The work is in stages/.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .config import RunConfig, load_run_file
from .errors import ConfigError
from .ladder import climb, meets
from .ledger import Ledger
from .records import (
    ArmScore,
    Curated,
    Device,
    Plan,
    Progress,
    RungPlan,
    TrainResult,
    Verdict,
    no_progress,
    plan_from_json,
    train_from_json,
)
from .report.html import render_report
from .runfolder import RunFolder
from .stages import closing, deciding, inputs, preparing, rungs
from .stages.common import rung_file
from .stages.recorder import once
from .units import SECONDS_PER_HOUR, duration, usd


class Run:
    """One run: a run file, its folder, and the stages between them."""

    def __init__(self, config: RunConfig, *, base_dir: Path, folder: Path) -> None:
        self.config = config
        self.base_dir = base_dir  # what the paths in the run file are relative to
        self.folder = folder
        self.run_folder = RunFolder(folder)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.progress: Progress = no_progress
        self.log: Callable[[str], None] = lambda line: None
        self.device: Device | None = None  # detected on first use
        self.prints: dict[str, str] = {}  # record name -> fingerprint of the stage's inputs

    @classmethod
    def from_file(cls, path: str | Path, *, runs_dir: Path = Path("runs")) -> Run:
        """A run from its run file; the folder is runs_dir/NAME. Raises: ConfigError."""
        config = load_run_file(path)
        return cls(config, base_dir=Path(path).resolve().parent, folder=Path(runs_dir) / config.name)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Run:
        """Reopen a run folder through the run.yaml it holds. Raises: ConfigError."""
        folder = Path(folder)
        if not (folder / "run.yaml").is_file():
            raise ConfigError(f"{folder} is not a run folder (it has no run.yaml); 'shoestring runs' lists them")
        return cls(load_run_file(folder / "run.yaml"), base_dir=closing.base_dir_of(folder), folder=folder)

    def execute(
        self,
        progress: Progress = no_progress,
        log: Callable[[str], None] = lambda line: None,
        until: str | None = None,
    ) -> Verdict:
        """Run or continue the recipe, to the end or until a stage (curate, decide, plan, train, eval) is done.

        Raises: BudgetStopped, Interrupted and other ShoestringErrors; the folder stays resumable.
        """
        self.progress, self.log = progress, log
        with self.run_folder.locked():
            closing.open_folder(self)
            try:
                verdict = self._main_path(until)
            except BaseException:
                with contextlib.suppress(Exception):  # what stopped the run is what the user must hear of
                    self.write_report()
                raise
            self.write_report()
            return verdict

    def _main_path(self, until: str | None) -> Verdict:
        task = self.config.task
        curated = self.curate()
        if until == "curate":
            return deciding.unfinished(task, until)
        baselines = [] if until == "plan" else self.decide(curated)
        without_training = deciding.baseline_verdict(baselines, task)
        if until == "decide":
            return without_training
        if without_training.met and not self.config.decide.train_anyway:
            self.log(f"No fine-tuning needed: {without_training.reason}")
            return self.conclude(without_training, None)
        plan = self.plan(curated)
        if until == "plan":
            return deciding.unfinished(task, until)
        first = rungs.first_that_fits(plan)
        if until == "train":
            self.train(first, curated)
            return deciding.unfinished(task, until)
        tuned, verdict = climb(plan.rungs, baselines, task, lambda rung: self.measure(rung, curated, baselines))
        met = [arm for arm in tuned if meets(arm, task.bar)]
        chosen = met[0] if met else max(tuned, key=lambda arm: arm.score.value)
        if until is None:
            self.export(chosen, curated)
        return self.conclude(verdict, chosen)

    # ---- stages in order: record, work, how it is read back, what it follows and depends on ----

    def curate(self) -> Curated:
        """Load, validate, clean and split; data/ holds the result, dropped rows with their reasons."""
        work = partial(preparing.curate, self)
        read = lambda _: preparing.read(self)  # noqa: E731
        return once(self, "curate.json", work, read, after=None, depends_on=inputs.curate(self))

    def decide(self, curated: Curated) -> list[ArmScore]:
        """Score prompting and linear baselines on held-out rows."""
        work = partial(deciding.decide, self, curated)
        depends_on = inputs.decide(self)
        return once(self, "decide.json", work, deciding.from_json, after="curate.json", depends_on=depends_on)

    def plan(self, curated: Curated) -> Plan:
        """Predict memory, hours and dollars of each rung, cheapest first."""
        work = partial(preparing.plan, self, curated)
        return once(self, "plan.json", work, plan_from_json, after="curate.json", depends_on=inputs.plan(self))

    def train(self, rung: RungPlan, curated: Curated) -> TrainResult:
        """Train one rung, or continue its newest complete checkpoint. Raises: BudgetStopped."""
        name = rung_file(rung.model, "train.json")
        work = partial(rungs.train, self, rung, curated, name)
        train_usd = rung.train_s.scaled(rung.price_usd_per_hour / SECONDS_PER_HOUR)
        predicted = {"usd": train_usd, "s": rung.train_s, "bytes": rung.peak_bytes}
        after, depends_on = "curate.json", inputs.train(self, rung)
        return once(self, name, work, train_from_json, after=after, depends_on=depends_on, predicted=predicted)

    def measure(self, rung: RungPlan, curated: Curated, baselines: list[ArmScore]) -> ArmScore:
        """Train and evaluate one rung."""
        self.log(f"Rung {rung.model}: predicted {duration(rung.train_s.value)}, {usd(rung.cost_usd.value)}")
        work = partial(rungs.evaluate, self, rung, self.train(rung, curated), curated, baselines)
        name, after = rung_file(rung.model, "eval.json"), rung_file(rung.model, "train.json")
        depends_on, predicted = inputs.evaluate(self, rung), {"s": rung.eval_s}
        arm = once(self, name, work, rungs.from_json, after=after, depends_on=depends_on, predicted=predicted)
        self.log(f"Rung {rung.model}: {arm.metric} {arm.score.value:.3f} [{arm.score.low:.3f}, {arm.score.high:.3f}]")
        return arm

    def export(self, chosen: ArmScore, curated: Curated) -> dict[str, Any]:
        """Adapter with model card, and merged weights checked against it."""
        work = partial(closing.export, self, chosen, curated)
        after = rung_file(chosen.model, "eval.json")
        return once(self, "export.json", work, dict, after=after, depends_on=chosen.arm)

    def conclude(self, verdict: Verdict, chosen: ArmScore | None) -> Verdict:
        """Write the verdict's record."""
        closing.conclude(self, verdict, chosen.model if chosen else None)
        return verdict

    def write_report(self) -> Path:
        """Render report.html from the files of the folder."""
        return self.run_folder.write_text("report.html", render_report(self.folder))

    def summary(self) -> dict[str, Any]:
        """What `--json` prints, read from the records."""
        return closing.summary(self)
