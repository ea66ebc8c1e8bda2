"""One rung of the ladder: train under the budget guard, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config import PREFERENCES, TaskConfig
from ..errors import BadInput, BudgetStopped, DoesNotFit
from ..evaluate.generation import LocalGenerator, make_generate
from ..evaluate.score import metric_value, score_arm
from ..files import read_json, write_json
from ..plan.engines import OURS
from ..records import (
    NOTE,
    ArmScore,
    Curated,
    Estimate,
    Example,
    Plan,
    RungPlan,
    TrainResult,
    arm_from_json,
    no_progress,
    to_json,
    train_from_json,
)
from ..train.adapter import folder_name, is_whole, restore
from ..train.engines.rung import train_with_engine
from ..train.preferred import preferred, told
from ..train.tracking import Tracking
from ..train.trainer import train_rung
from ..units import SECONDS_PER_HOUR, duration, usd
from . import bringing, forgetting, inputs, judging, searching
from .answering import answered
from .common import dev_rows, device, held_rows, rung_file
from .recorder import print_of
from .retrieving import facts_for, rows_for
from .tools import engine_python

if TYPE_CHECKING:
    from ..recipe import Run


def first_that_fits(plan: Plan) -> RungPlan:
    """The cheapest rung that fits. Raises: DoesNotFit with each rung's reason."""
    for rung in plan.rungs:
        if rung.verdict != "does_not_fit":
            return rung
    reasons = "; ".join([f"{r.model}: {r.reason}" for r in plan.rungs] + list(plan.notes))
    raise DoesNotFit(f"no rung can be trained here: {reasons}; choose smaller models, or method: qlora")


def train_print(run: Run, rung: RungPlan) -> str:
    """Fingerprint of what the rung's training is computed from, also the mark of its folder."""
    return print_of(run, rung_file(rung.model, "train.json"), "curate.json", inputs.train(run, rung))


def predicted(rung: RungPlan) -> dict[str, Estimate]:
    """What training is predicted to take, as the ledger puts it beside the actual."""
    train_usd = rung.train_s.scaled(rung.price_usd_per_hour / SECONDS_PER_HOUR)
    return {"usd": train_usd, "s": rung.train_s, "bytes": rung.peak_bytes}


def begin(run: Run, rung: RungPlan) -> None:
    """Before training starts or goes on: the budget allows it, and the rung folder belongs to these inputs.

    Raises: BudgetStopped; BadInput where the run is planned for another machine than this one.
    """
    if rung.device != device(run):
        raise BadInput(
            f"the run is planned for {rung.device.name} (market.device), this machine is {device(run).name}; "
            "run it there, or take market.device out of the run file"
        )
    set_aside_stale(run, rung)
    searched_s = rung.search_s.value if rung.search_s and is_searched(run, rung) else 0.0  # and paid for
    check_budget(run, rung, "training", rung.cost_usd.value - searched_s * rung.price_usd_per_hour / SECONDS_PER_HOUR)
    marker = run.run_folder.rung(rung.model) / "inputs.json"
    if not marker.exists():
        num_entries = len(run.ledger.entries())  # a line of this training can only come after these
        write_json(marker, {"fingerprint": train_print(run, rung), "num_entries": num_entries})


def is_searched(run: Run, rung: RungPlan) -> bool:
    """Whether the rung's learning rate was searched for, and the search has its ledger line."""
    return run.run_folder.record(rung_file(rung.model, "search.json")) is not None


def check_budget(run: Run, rung: RungPlan, doing: str, predicted_usd: float) -> None:
    """Refuse work that is predicted to cost more than is left. Raises: BudgetStopped."""
    left_usd = run.config.budget_usd - spent_before_usd(run, rung)
    if predicted_usd > left_usd:
        raise BudgetStopped(
            f"{doing} {rung.model} is predicted to cost {usd(predicted_usd)}, and of the budget of "
            f"{usd(run.config.budget_usd)} there is {usd(max(left_usd, 0))} left; raise budget_usd and run "
            "the same command again: finished stages are kept"
        )


def spent_before_usd(run: Run, rung: RungPlan) -> float:
    """What the run has cost so far, without a training of this rung that is under way."""
    folder = run.run_folder.rung(rung.model)
    return run.ledger.spent_usd(live_usd_per_hour=rung.price_usd_per_hour, but=folder.name)


def set_aside_stale(run: Run, *planned: RungPlan) -> None:
    """Set rung folders aside that were made from other inputs: none of it is continued, nor shown as this run's.

    Their seconds were paid for, so the ledger gets a line. A plan for another machine leaves this one's folders alone.
    """
    for rung in planned:
        _set_aside_stale(run, rung)


def _set_aside_stale(run: Run, rung: RungPlan) -> None:
    folder = run.run_folder.rung(rung.model)
    marker = folder / "inputs.json"
    begun = read_json(marker)["fingerprint"] if marker.exists() else None
    if not folder.exists() or begun == train_print(run, rung) or rung.device != device(run):
        return
    wall_s = run.ledger.live_s().get(folder.name)
    if wall_s is not None:
        run.ledger.record(
            f"rungs/{folder.name}/abandoned",
            stage="train",
            predicted=None,
            actual={"s": wall_s, "usd": wall_s * rung.price_usd_per_hour / SECONDS_PER_HOUR},
            price_usd_per_hour=rung.price_usd_per_hour,
            fingerprint=begun or "",
        )
    moved = run.run_folder.set_aside(folder)
    run.log(f"Rung {rung.model}: inputs changed; the earlier attempt is kept in {moved}")


def adapter_is_there(run: Run, model: str) -> bool:
    """Whether what a rung has trained is as training left it, put back from a checkpoint where it was not."""
    folder, record = run.run_folder.rung(model), run.run_folder.record(rung_file(model, "train.json"))
    if record is None:
        return True
    trained = train_from_json(record["result"])
    name = folder_name(trained.method)
    if is_whole(folder / name, trained.settings.get("adapter_sha256", {})):
        return True
    if not restore(folder, trained):
        return False
    run.log(f"Rung {model}: its {name} was missing or damaged, and is put back from its checkpoints")
    return True


def require_adapter(run: Run, chosen: ArmScore) -> None:
    """Raises: BadInput where what is to be exported is lost for good."""
    if not adapter_is_there(run, chosen.model):
        raise BadInput(
            f"{run.run_folder.rung(chosen.model)}: what it trained is missing or damaged and no checkpoint holds it; "
            f"train it again: shoestring run {run.folder}"
        )


def forget_lost(run: Run, rung: RungPlan) -> None:
    """Set a rung aside whose trained weights are lost for good, so that it is trained again."""
    if rung.device == device(run) and not adapter_is_there(run, rung.model):
        moved = run.run_folder.set_aside(run.run_folder.rung(rung.model))
        run.run_folder.retract("export.json")
        run.log(
            f"Rung {rung.model}: what it trained is missing or damaged and no checkpoint holds it, so it is trained "
            f"again; "
            f"what is left is in {moved}"
        )


def train(run: Run, rung: RungPlan, curated: Curated) -> tuple[Any, TrainResult]:
    """Fine-tune one rung, or continue its newest complete checkpoint; what a service trained is taken instead."""
    if folder := bringing.brought(run, rung):
        taken = bringing.take_brought(run, rung, folder, train_print(run, rung))
        return to_json(taken), taken
    begin(run, rung)
    run.log(f"Rung {rung.model}: predicted {duration(rung.train_s.value)}, {usd(rung.cost_usd.value)}")
    curated = rows_for(run, curated, rung.model)
    dev = dev_rows(run, curated, rung.settings)

    spending = Spending(run, rung)
    spending.refuse_if_spent()
    settings = searching.settled(run, rung, curated, spending.should_stop)
    spending = Spending(run, rung)  # the search's cost included
    trained = trainer(run)(
        model=rung.model,
        train=curated.all_rows("train"),
        dev=held_rows(run, curated, rung.settings),
        out_dir=run.run_folder.rung(rung.model),
        settings=settings,
        device=device(run),
        dev_metric=DevMetric(run.config.task, tuple(dev), curated.labels, settings.max_new_tokens),
        should_stop=spending.should_stop,
        progress=spending.progress,
        log=run.log,
        tracking=Tracking(tuple(run.config.train.trackers), f"{run.config.name}/{rung.model}"),
    )
    return to_json(trained), trained


class Spending:
    """The budget guard of one training: what it costs as it goes on, and whether the next step may begin."""

    def __init__(self, run: Run, rung: RungPlan) -> None:
        self.run, self.rung = run, rung
        self.usd_per_s = rung.price_usd_per_hour / SECONDS_PER_HOUR
        self.before_usd = self.spent_usd = spent_before_usd(run, rung)

    def should_stop(self, wall_s: float) -> Exception | None:
        """wall_s: of the training's seconds once the next step is done and saved."""
        self.spent_usd = self.before_usd + wall_s * self.usd_per_s
        if self.spent_usd <= self.run.config.budget_usd:
            return None
        return BudgetStopped(
            f"the next step of training {self.rung.model} could bring the cost to {usd(self.spent_usd)}, past the "
            f"budget of {usd(self.run.config.budget_usd)}; what is trained is saved: raise budget_usd and run the same "
            "command again to continue"
        )

    def refuse_if_spent(self) -> None:
        """Before anything is loaded. Raises: BudgetStopped where an earlier session left too little for one step."""
        wall_s = self.run.ledger.live_s().get(self.run.run_folder.rung(self.rung.model).name, 0.0)
        stopped = self.should_stop(wall_s + self.rung.train_s.value / max(1, self.rung.num_steps)) if wall_s else None
        if stopped:
            raise stopped

    def progress(self, label: str, done: int, total: int | None) -> None:
        """The run's progress with dollars: those of the step under way included."""
        if self.usd_per_s:
            predicted_usd = self.before_usd + self.rung.train_s.value * self.usd_per_s
            label += (
                f"{NOTE}{usd(self.spent_usd)} spent of {usd(predicted_usd)} predicted, "
                f"budget {usd(self.run.config.budget_usd)}"
            )
        self.run.progress(label, done, total)


@dataclass(frozen=True, slots=True)
class DevMetric:
    """The task's metric of a model's answers to the dev rows; made so that another process can be given it."""

    task: TaskConfig
    rows: tuple[Example, ...]
    labels: tuple[str, ...] | None
    max_new_tokens: int

    def __call__(self, model: Any, tokenizer: Any) -> float:
        generate = make_generate(model, tokenizer, max_new_tokens=self.max_new_tokens)
        return metric_value(self.task, self.rows, generate([e.request for e in self.rows], no_progress), self.labels)


def trainer(run: Run) -> Callable[..., TrainResult]:
    """What trains a rung: ours, or the engine of the run file."""
    if run.config.engine == OURS:
        return train_rung
    return partial(train_with_engine, engine_python=engine_python(run))


def evaluate(run: Run, rung: RungPlan, trained: TrainResult, curated: Curated) -> tuple[Any, ArmScore]:
    """Answer the held-out rows with what was trained, and score; answers of an earlier session are not made again.

    The arm's seconds and dollars include training: that is what the answer cost. Raises: BudgetStopped.
    """
    check_budget(run, rung, "evaluating", rung.eval_s.value * rung.price_usd_per_hour / SECONDS_PER_HOUR)
    retrieved = facts_for(run, curated, rung.model)
    asked = rows_for(run, curated, rung.model)
    started = time.monotonic()
    generator = forgetting.tuned_generator(run, rung, trained)
    rows = answered(run, rung, trained, generator, asked, curated)
    preference = _preferred(run, rung, generator, asked)
    num_left = len(curated.eval) - len(rows.examples)
    eval_s = time.monotonic() - started + rows.earlier_s
    arm = score_arm(
        arm=f"{trained.method} {rung.model}",
        kind="finetune",
        model=rung.model,
        task=run.config.task,
        examples=rows.examples,
        completions=rows.completions,
        scored=rows.scored,
        labels=curated.labels,
        wall_s=eval_s + trained.wall_s,
        seed=run.config.seed,
        price_usd_per_hour=rung.price_usd_per_hour,
        details={
            "eval_s": eval_s,
            "train_s": trained.wall_s,
            **({} if bringing.is_brought(trained) else {"num_steps": trained.num_steps}),
            "is_best_at_end": trained.dev_metric is not None and trained.best_step == trained.num_steps,
            **({"preference": preference} if preference else {}),
            **({"retrieval": retrieved} if retrieved else {}),
            **({"unpaid_s": rows.unpaid_s} if rows.unpaid_s else {}),
            **({"given_up": rows.given_up, "num_left": num_left} if rows.given_up else {}),
        },
    )
    arm = bringing.with_bill(judging.scored(run, curated, arm), trained)
    return {"arm": to_json(arm)}, arm


def _preferred(run: Run, rung: RungPlan, generator: LocalGenerator, curated: Curated) -> dict[str, Any] | None:
    """Under a preference objective, which answers of the held-out pairs are preferred, before and after."""
    if rung.settings.objective not in PREFERENCES:
        return None
    run.progress(f"preferences {rung.model}", 0, None)
    found = preferred(generator.model, generator.tokenizer, curated.all_rows("eval"), rung.settings, device(run))
    run.log(f"Rung {rung.model}: {told(found) if found else 'no held-out row is a pair, so none is preferred'}")
    return found


def from_json(result: Any) -> ArmScore:
    """The arm of an eval record."""
    return arm_from_json(result["arm"])
