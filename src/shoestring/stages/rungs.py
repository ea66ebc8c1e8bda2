"""One rung of the ladder: train under the budget guard, evaluate, pair with the baselines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, BudgetStopped, DoesNotFit
from ..evaluate.generation import load_generator, make_generate
from ..evaluate.score import metric_value, score_arm
from ..evaluate.statistics import paired_difference
from ..files import read_json, read_whole_lines, write_json
from ..records import (
    ArmScore,
    Curated,
    Plan,
    RungPlan,
    TrainResult,
    arm_from_json,
    no_progress,
    to_json,
)
from ..train.trainer import train_rung
from ..units import SECONDS_PER_HOUR, usd
from .common import dev_rows, device, named

if TYPE_CHECKING:
    from ..recipe import Run


def first_that_fits(plan: Plan) -> RungPlan:
    """The cheapest rung that fits. Raises: DoesNotFit with each rung's reason."""
    for rung in plan.rungs:
        if rung.verdict != "does_not_fit":
            return rung
    reasons = "; ".join([f"{r.model}: {r.reason}" for r in plan.rungs] + list(plan.notes))
    raise DoesNotFit(f"no rung can be trained here: {reasons}; choose smaller models, or method: qlora")


def begin(run: Run, rung: RungPlan, inputs_print: str) -> None:
    """Before training starts or goes on: the budget allows it, and the rung folder belongs to these inputs.

    A folder made from other inputs is set aside, so that no checkpoint of another set-up is continued.
    Raises: BudgetStopped; BadInput where the run is planned for another machine than this one.
    """
    if rung.device != device(run):
        raise BadInput(
            f"the run is planned for {rung.device.name} (market.device), this machine is {device(run).name}; "
            "run it there, or take market.device out of the run file"
        )
    left_usd = run.config.budget_usd - run.ledger.spent_usd()
    if rung.cost_usd.value > left_usd:
        raise BudgetStopped(
            f"training {rung.model} is predicted to cost {usd(rung.cost_usd.value)}, and of the budget of "
            f"{usd(run.config.budget_usd)} there is {usd(max(left_usd, 0))} left; raise budget_usd and run "
            "the same command again: finished stages are kept"
        )
    folder = run.run_folder.rung(rung.model)
    marker = folder / "inputs.json"
    if folder.exists() and (not marker.exists() or read_json(marker)["fingerprint"] != inputs_print):
        enter_abandoned(run, rung, folder)
        moved = run.run_folder.set_aside(folder)
        run.log(f"Rung {rung.model}: inputs changed; the earlier attempt is kept in {moved}")
    write_json(marker, {"fingerprint": inputs_print})


def enter_abandoned(run: Run, rung: RungPlan, folder: Path) -> None:
    """Write the ledger line of a training that was begun and is given up: its seconds were paid for."""
    steps, marker = folder / "steps.jsonl", folder / "inputs.json"
    begun = read_json(marker)["fingerprint"] if marker.exists() else ""
    if not steps.exists() or any(entry.get("fingerprint") == begun for entry in run.ledger.entries()):
        return
    wall_s = max((row["wall_s"] for row in read_whole_lines(steps)), default=0.0)
    run.ledger.record(
        f"rungs/{folder.name}/abandoned",
        stage="train",
        predicted=None,
        actual={"s": wall_s, "usd": wall_s * rung.price_usd_per_hour / SECONDS_PER_HOUR},
        price_usd_per_hour=rung.price_usd_per_hour,
        fingerprint=begun,
    )


def train(run: Run, rung: RungPlan, curated: Curated, name: str) -> tuple[Any, TrainResult]:
    """Fine-tune one rung, or continue its newest complete checkpoint; name is that of its record."""
    begin(run, rung, run.prints[name])
    task = run.config.task
    dev = dev_rows(run, curated)

    def dev_metric(model: Any, tokenizer: Any) -> float:
        generate = make_generate(model, tokenizer, max_new_tokens=rung.settings.max_new_tokens)
        return metric_value(task, dev, generate([e.prompt for e in dev], no_progress), curated.labels)

    spent_before_usd = run.ledger.spent_usd()

    def should_stop(wall_s: float) -> Exception | None:
        spent_usd = spent_before_usd + wall_s * rung.price_usd_per_hour / SECONDS_PER_HOUR
        if spent_usd <= run.config.budget_usd:
            return None
        return BudgetStopped(
            f"spent {usd(spent_usd)} of the budget of {usd(run.config.budget_usd)} while training {rung.model}; "
            "a checkpoint is saved: raise budget_usd and run the same command again to continue"
        )

    trained = train_rung(
        model=rung.model,
        train=curated.train,
        dev=dev,
        out_dir=run.run_folder.rung(rung.model),
        settings=rung.settings,
        device=device(run),
        dev_metric=dev_metric,
        should_stop=should_stop,
        progress=run.progress,
    )
    return to_json(trained), trained


def evaluate(
    run: Run, rung: RungPlan, trained: TrainResult, curated: Curated, baselines: Sequence[ArmScore]
) -> tuple[Any, ArmScore]:
    """Generate on every held-out row with base + adapter, score, and pair with each baseline.

    The arm's seconds and dollars include training: that is what the answer cost.
    """
    started = time.monotonic()
    generator = load_generator(
        rung.model,
        run.run_folder.rung(rung.model) / "adapter",
        method=trained.method,
        device=device(run),
        max_new_tokens=rung.settings.max_new_tokens,
    )
    progress = named(run.progress, f"evaluate {rung.model}")
    completions = generator.generate([e.prompt for e in curated.eval], progress)
    generator.close()
    eval_s = time.monotonic() - started
    arm = score_arm(
        arm=f"{trained.method} {rung.model}",
        kind="finetune",
        model=rung.model,
        task=run.config.task,
        examples=curated.eval,
        completions=completions,
        labels=curated.labels,
        wall_s=eval_s + trained.wall_s,
        seed=run.config.seed,
        price_usd_per_hour=rung.price_usd_per_hour,
        details={"eval_s": eval_s, "train_s": trained.wall_s, "num_steps": trained.num_steps},
    )
    differences = [paired_difference(arm, baseline, seed=run.config.seed) for baseline in baselines]
    return {"arm": to_json(arm), "differences": to_json(differences)}, arm


def from_json(result: Any) -> ArmScore:
    """The arm of an eval record."""
    return arm_from_json(result["arm"])
