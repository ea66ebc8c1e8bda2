"""The main path: load -> curate -> split -> decide -> plan -> (train -> evaluate) a rung -> export -> report.

Read this file as the program's table of contents. A stage whose record is in the run folder is not
run again, so the same call continues a run that was interrupted. The work is in stages/.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from . import records
from .config import RunConfig, load_run_file
from .ladder import choose
from .ledger import Ledger
from .records import ArmScore, Curated, Device, Log, Plan, Progress, RungPlan, TrainResult, Verdict, no_log, no_progress
from .report.html import render_report
from .runfolder import RunFolder
from .stages import climbing, closing, deciding, forgetting, inputs, preparing, rungs
from .stages.common import rung_file
from .stages.recorder import once
from .train.locate import with_folders


class Run:
    """One run: a run file, its folder, and the stages between them."""

    def __init__(self, config: RunConfig, *, base_dir: Path, folder: Path, run_file: Path | None = None) -> None:
        self.config = with_folders(config, base_dir)
        self.base_dir = base_dir  # what the paths in the run file are relative to
        self.folder, self.run_file = folder, run_file
        self.run_folder = RunFolder(folder)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.progress: Progress = no_progress
        self.log: Log = no_log
        self.device: Device | None = None  # detected on first use
        self.counts: dict[str, records.TokenCounts] = {}  # by model, counted once a session
        self.loaded: tuple[str, Any] | None = None  # a trained rung's model and its generator
        self.prints: dict[str, str] = {}  # record name -> fingerprint of the stage's inputs

    @classmethod
    def from_file(cls, path: str | Path, *, runs_dir: Path = Path("runs")) -> Run:
        """A run from its run file; the folder is runs_dir/NAME. Raises: ConfigError."""
        config, run_file = load_run_file(path), Path(path).resolve()
        folder = Path(runs_dir) / config.name
        closing.refuse_other_run_file(config.name, folder, run_file)
        return cls(config, base_dir=run_file.parent, folder=folder, run_file=run_file)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Run:
        """Reopen a run folder through the run.yaml it holds. Raises: ConfigError."""
        base_dir = closing.base_dir_of(Path(folder))
        return cls(load_run_file(Path(folder) / "run.yaml"), base_dir=base_dir, folder=Path(folder))

    def execute(self, progress: Progress = no_progress, log: Log = no_log, until: str | None = None) -> Verdict:
        """Run or continue the recipe, to the end or until a stage (curate, decide, plan, train, eval) is done.

        Raises: BudgetStopped, Interrupted and other ShoestringErrors; the folder stays resumable.
        """
        self.progress, self.log = progress, log
        with closing.opened(self, until):
            return self._main_path(until)

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
            return closing.conclude(self, without_training)
        plan = self.plan(curated)
        if until == "plan":
            return deciding.unfinished(task, until)
        rungs.set_aside_stale(self, *plan.rungs)
        first = rungs.first_that_fits(plan)
        if until == "train":
            self.train(first, curated)
            return deciding.unfinished(task, until)
        tuned, verdict, steps = climbing.climb_plan(self, plan, baselines, curated)
        if until is None and tuned:
            self.export(choose(tuned, task.bar), curated)
        return closing.conclude(self, verdict, tuned, baselines, steps)

    # ---- stages in order: record, work, how it is read back, what it follows and depends on ----

    def curate(self) -> Curated:
        """Load, validate, clean and split; data/ holds the result, dropped rows with their reasons."""
        preparing.forget_deleted(self)
        work, read = partial(preparing.curate, self), partial(preparing.read, self)
        curated = once(self, "curate.json", work, read, after=None, depends_on=inputs.curate(self))
        self.prints["curate.json"] = preparing.outcome(self)
        return curated

    def decide(self, curated: Curated) -> list[ArmScore]:
        """Score prompting and linear baselines on held-out rows."""
        work, read = partial(deciding.decide, self, curated), deciding.from_json
        return once(self, "decide.json", work, read, after="curate.json", depends_on=inputs.decide(self))

    def plan(self, curated: Curated) -> Plan:
        """Predict memory, hours and dollars of each rung, cheapest first."""
        work, read = partial(preparing.plan, self, curated), records.plan_from_json
        return once(self, "plan.json", work, read, after="curate.json", depends_on=inputs.plan(self))

    def train(self, rung: RungPlan, curated: Curated) -> TrainResult:
        """Train one rung, or continue its newest complete checkpoint. Raises: BudgetStopped."""
        rungs.forget_lost(self, rung)
        name, after, depends_on = rung_file(rung.model, "train.json"), "curate.json", inputs.train(self, rung)
        work, read = partial(rungs.train, self, rung, curated), records.train_from_json
        return once(self, name, work, read, after=after, depends_on=depends_on, predicted=rungs.predicted(rung))

    def measure(self, rung: RungPlan, curated: Curated) -> ArmScore:
        """Train and evaluate one rung. Raises: BudgetStopped."""
        trained = self.train(rung, curated)
        work = partial(rungs.evaluate, self, rung, trained, curated)
        name, after = rung_file(rung.model, "eval.json"), rung_file(rung.model, "train.json")
        depends_on, predicted = inputs.evaluate(self, rung), {"s": rung.eval_s}
        arm = once(self, name, work, rungs.from_json, after=after, depends_on=depends_on, predicted=predicted)
        self.log(f"Rung {rung.model}: {arm.metric} {arm.score.value:.3f} [{arm.score.low:.3f}, {arm.score.high:.3f}]")
        forgetting.measure(self, rung, trained, curated)
        return arm

    def export(self, chosen: ArmScore, curated: Curated) -> dict[str, Any]:
        """Adapter with model card, and merged weights checked against it."""
        closing.forget_incomplete(self)
        work, after = partial(closing.export, self, chosen, curated), rung_file(chosen.model, "eval.json")
        return once(self, "export.json", work, dict, after=after, depends_on=chosen.arm)

    def export_trained(self, progress: Progress = no_progress, log: Log = no_log) -> ArmScore:
        """Export the best of what is trained and scored, and train nothing. Raises: BadInput."""
        self.progress, self.log = progress, log
        chosen = choose(closing.trained_and_scored(self), self.config.task.bar)
        with closing.opened(self):
            rungs.require_adapter(self, chosen)
            self.export(chosen, preparing.read_again(self))
        return chosen

    def write_report(self) -> Path:
        """Render report.html from the files of the folder."""
        return self.run_folder.write_text("report.html", render_report(self.folder))

    def summary(self) -> dict[str, Any]:
        """What `--json` prints, read from the records."""
        return closing.summary(self)
