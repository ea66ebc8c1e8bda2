"""Before anything is rented: every way to have the run trained and served, from a quick look at the data.

Needs neither the models nor the network: sizes come from the table, prices from the dated snapshot. What a model, an
offer or a service cannot answer is put aside with its reason, and the others are still weighed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PREFERENCES, RunConfig
from ..data.sample import Sample, sample
from ..data.sizes import MIN_ROWS, dev_size, eval_size
from ..errors import BadInput, DataError, ModelError
from ..files import write_json
from ..ladder import models_of
from ..market.choice import Choice, choose, is_sure
from ..market.offers import MACHINES_AT_HAND, Offer
from ..market.options import Discarded, Option, Order, does_not_fit, here, larger, of_offers, of_services, smallest
from ..market.prices import price_for
from ..market.serving import api_routes, own_routes
from ..market.serving_cost import Serving, serving_of
from ..market.table import load
from ..market.total import Total, total_of
from ..market.work import MAX_ROWS, Rows, Work, methods_of, tiled, work_of
from ..plan.catalogue import PERMISSIVE
from ..plan.dev_rows import MAX_DEV_ROWS
from ..plan.devices import gpu_table, planned_device
from ..plan.hazard import Seen
from ..plan.served import known_rates
from ..plan.shapes import ModelShape, shape_of, table_name
from ..records import Device, Estimate, TokenCounts, plan_from_json
from ..train.device import present_device
from ..train.locate import folder_at_hand
from ..train.quick_counts import Lengths, quick_counts
from . import closing
from .common import seen_by_seller
from .common import shape as shape_by_hub

if TYPE_CHECKING:
    from ..recipe import Run

LONGER_FRAC = 1.25  # the longest of many rows against the longest of a sample


@dataclass(frozen=True, slots=True)
class Weighed:
    """The choice, and what it rests on. rows: by model."""

    today: date
    choice: Choice
    rows: dict[str, Rows]
    shapes: dict[str, ModelShape]
    num_rows: int  # in the sources
    read: str  # how the data were read
    total: Total | None
    notes: tuple[str, ...] = ()
    serving: Serving | None = None
    seen: Mapping[str, Seen] = field(default_factory=dict)  # of spot machines in earlier launches, by seller


@dataclass
class _Search:
    """What has been found so far, and what earlier launches saw of spot machines."""

    seen: Mapping[str, Seen]
    options: list[Option] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Looked:
    """A sample of the data, and its lengths under each model looked at; good for other budgets, rows and deadlines."""

    sample: Sample
    held_out: Sample | None
    lengths: dict[str, Lengths] = field(default_factory=dict)  # by model

    def counts(self, model: str, family: str) -> Lengths:
        """Tokens of the sample's rows, counted once a model."""
        if model not in self.lengths:
            examples = self.sample.examples
            evals = self.held_out.examples if self.held_out else examples
            self.lengths[model] = quick_counts(examples, evals, folder_at_hand(model), family)
        return self.lengths[model]


def weigh(run: Run, today: date | None = None, looked_at: Looked | None = None) -> Weighed:
    """Enumerate, discard, choose, and add up; looked_at: of the same data, else they are looked at now.

    Raises: DataError, and ModelError where no model can be planned.
    """
    config, today = run.config, today or datetime.now(UTC).date()
    seen = looked_at or look(run)
    looked, held_out = seen.sample, seen.held_out
    num_train, num_dev, num_eval = sizes(config, looked, held_out)
    known = load(today)
    found = _Search(seen_by_seller(run.folder.parent), notes=list(known.notes))
    wanted = _gpu_wanted(config, found)
    offers = [o for o in known.offers if o.gpu not in MACHINES_AT_HAND and wanted in (None, o.gpu)]
    rows: dict[str, Rows] = {}
    shapes: dict[str, ModelShape] = {}
    faults: list[ModelError] = []
    for model in models_of(config):
        try:
            shapes[model] = _shape(model)
            rows[model] = _rows(run, model, shapes[model], seen, (num_train, num_dev, num_eval))
            _of_model(run, model, shapes[model], rows[model], offers, wanted, found, today)
        except ModelError as error:
            faults.append(error)
            found.notes.append(f"{model} is not weighed: {error}")
            shapes.pop(model, None)
            rows.pop(model, None)
            found.options = [option for option in found.options if option.model != model]
            found.discarded.append(Discarded("model_unknown", model, "", "", "", False, str(error)))
    if not shapes:
        raise faults[0]
    choice = choose(config, found.options, found.discarded)
    total, serving = _total(run, choice, rows, shapes, looked.num_rows, offers, found.notes, today)
    if config.traffic and total is None and choice.picked:
        found.notes.append("no machine or service of the tables can serve the picked model: the total is not added up")
    notes = [*found.notes, *_notes(config, looked, shapes)]
    told = (today, choice, rows, shapes, looked.num_rows, looked.how, total)
    return Weighed(*told, tuple(dict.fromkeys(notes)), seen=found.seen, serving=serving)


def look(run: Run) -> Looked:
    """Read a sample of the run's data. Raises: DataError."""
    data = run.config.data
    objective = run.config.train.objective
    looked = sample(data.train, run.base_dir, data.fields, data.system, keeps_undesired=objective == "kto")
    held_out = sample(data.eval, run.base_dir, data.fields, data.system, is_held_out=True) if data.eval else None
    if objective in ("dpo", "orpo") and not any(e.rejected for e in looked.examples):
        raise DataError(
            f"{', '.join(data.train)}: train.objective = {objective} needs a chosen and a rejected answer in each row; "
            "none of the sample has both"
        )
    if looked.num_examples < 2 * MIN_ROWS:
        raise DataError(
            f"{', '.join(data.train)}: about {looked.num_examples} usable rows, at least {2 * MIN_ROWS} are needed"
        )
    return Looked(looked, held_out)


def sizes(config: RunConfig, looked: Sample, held_out: Sample | None) -> tuple[int, int, int]:
    """Training, dev and held-out rows, as curation splits them when it drops none."""
    left = looked.num_examples
    if held_out is None:
        num_eval = eval_size(left, config.curate.eval_rows)
        left -= num_eval
    else:
        num_eval = held_out.num_examples
    num_dev = dev_size(left)
    num_train = left - num_dev
    if config.curate.max_train_rows:
        num_train = min(num_train, config.curate.max_train_rows)
    if config.curate.max_eval_rows:
        num_eval = min(num_eval, config.curate.max_eval_rows)
    return max(1, num_train), min(num_dev, MAX_DEV_ROWS), max(1, num_eval)


def _gpu_wanted(config: RunConfig, found: _Search) -> str | None:
    """The GPU market.device names; an unknown one is said, and all are weighed."""
    name = config.market.device
    if name is None or name.lower() in MACHINES_AT_HAND:
        return name and name.lower()
    try:
        return planned_device(name, Device("", "", 0, 1, "", "")).name
    except BadInput as error:
        found.notes.append(f"{error}; every GPU is weighed instead")
        return None


def _shape(model: str) -> ModelShape:
    """Sizes from a folder, the table (under any of its names), or the hub. Raises: ModelError."""
    folder = folder_at_hand(model)
    if folder is not None:
        return shape_of(model, folder)
    row = table_name(model)
    return replace(shape_of(row), name=model) if row else shape_by_hub(model)


def _rows(run: Run, model: str, shape: ModelShape, seen: Looked, num: tuple[int, int, int]) -> Rows:
    """Lengths under the model's tokenizer, if it is here; else estimated."""
    if model in run.counts:
        return _counted(run.counts[model], num[1])
    num_train, num_dev, num_eval = num
    counts, error, how = seen.counts(model, shape.family)
    given = run.config.train.seq_len
    limit = min(given or shape.context_tokens, shape.context_tokens)
    if run.config.train.objective not in PREFERENCES:
        counts = replace(counts, rejected=())
    num_read = len(counts.prompt)
    counts = _within(counts, limit)
    num_train = max(1, round(num_train * len(counts.prompt) / num_read))
    prompt, answer = tiled(counts.prompt, min(num_train, MAX_ROWS)), tiled(counts.answer, min(num_train, MAX_ROWS))
    if seen.sample.num_examples > len(seen.sample.examples):  # the longest row is likely not in the sample
        answer = _with_longer(prompt, answer, limit)
    most = run.config.curate.max_train_tokens
    if most:
        num_train = max(1, min(num_train, round(most / (sum(counts.lengths) / len(counts.lengths)))))
    return Rows(
        counts=TokenCounts(
            prompt=prompt[:num_train],
            answer=answer[:num_train],
            eval_prompt=tiled(counts.eval_prompt, num_eval),
            eval_answer=tiled(counts.eval_answer, num_eval),
            rejected=tiled(counts.rejected, min(num_train, MAX_ROWS)),
        ),
        num_train=num_train,
        num_dev=num_dev,
        num_eval=num_eval,
        error=error,
        how=how,
    )


def _counted(counts: TokenCounts, num_dev: int) -> Rows:
    """Lengths of the curated rows, which planning has just counted."""
    step = -(-len(counts.prompt) // MAX_ROWS)
    kept = replace(counts, prompt=counts.prompt[::step], answer=counts.answer[::step], rejected=counts.rejected[::step])
    how = "counted by the model's tokenizer on the curated rows"
    exact = Estimate(1.0, 1.0, 1.0)
    return Rows(kept, len(counts.prompt), num_dev, len(counts.eval_prompt), exact, how)


def _within(counts: TokenCounts, limit: int) -> TokenCounts:
    """Without the training rows that are too long, which curation drops."""
    kept = [i for i, length in enumerate(counts.paths) if length <= limit]
    if not kept:
        raise ModelError(
            f"every row of the sample is longer than {limit} tokens, the context or train.seq_len; shorten the rows, "
            "or name a model with a longer context"
        )
    prompt, answer = (tuple(side[i] for i in kept) for side in (counts.prompt, counts.answer))
    rejected = tuple(counts.rejected[i] for i in kept) if counts.rejected else ()
    return replace(counts, prompt=prompt, answer=answer, rejected=rejected)


def _with_longer(prompt: Sequence[int], answer: Sequence[int], limit: int) -> tuple[int, ...]:
    """The answers, that of the longest row lengthened by LONGER_FRAC of the row."""
    lengths = [p + a for p, a in zip(prompt, answer, strict=True)]
    i = max(range(len(lengths)), key=lengths.__getitem__)
    more = min(round(lengths[i] * (LONGER_FRAC - 1)), limit - lengths[i])
    return (*answer[:i], answer[i] + max(0, more), *answer[i + 1 :])


def _of_model(
    run: Run,
    model: str,
    shape: ModelShape,
    rows: Rows,
    offers: Sequence[Offer],
    wanted: str | None,
    found: _Search,
    today: date,
) -> None:
    config = run.config
    works: dict[tuple[str, int], list[Work]] = {}

    def weigh_orders(wanted_orders: Sequence[Order]) -> list[Option]:
        fresh: dict[tuple[str, int], list[Work]] = {}
        for gpu, num in dict.fromkeys((order.offer.gpu, order.num_gpus) for order in wanted_orders):
            spec = gpu_table()[gpu]
            why = f"{spec.dtype}, by the GPU table"
            device = Device("cuda", gpu, spec.memory_bytes, 1, spec.dtype, why, num)
            fresh[gpu, num] = [work_of(config, model, shape, rows, device, m) for m in methods_of(config, device)]
        options, out = of_offers(config, fresh, shape.num_params, wanted_orders, found.seen)
        works.update(fresh)
        found.options += options
        found.discarded += out
        return options

    options = weigh_orders(smallest(config, offers))
    fits_one = any(
        not does_not_fit(work) for (_, num), found_works in works.items() if num == 1 for work in found_works
    )
    in_time = not config.deadline_h or any(is_sure(option) and option.num_gpus == 1 for option in options)
    if not (fits_one and in_time):
        weigh_orders(larger(config, offers))
    _here(run, model, shape, rows, wanted, found, today)
    if wanted is None:
        any_work = next((w for ws in works.values() for w in ws), None)
        epochs = any_work.settings.num_epochs if any_work else 1.0
        served, out = of_services(config, model, shape.num_params / 1e9, rows, epochs, config.train.num_evals, today)
        found.options += served
        found.discarded += out


def _here(run: Run, model: str, shape: ModelShape, rows: Rows, wanted: str | None, found: _Search, today: date) -> None:
    """The machine at hand, or the one market.device says is ours by giving its price."""
    config = run.config
    present = present_device(config.train.num_threads)
    is_ours = wanted is None or wanted == present.kind or config.market.price_usd_per_hour is not None
    if not is_ours:
        return
    try:
        device = planned_device(wanted, present)
        price = price_for(
            device, config.market, num_gpus=device.num_devices if device.kind == "cuda" else 1, today=today
        )
    except BadInput as error:
        found.discarded.append(Discarded("no_price", model, "", present.name, "this machine", False, str(error)))
        return
    for method in methods_of(config, device):
        work = _as_planned(run, work_of(config, model, shape, rows, device, method))
        option = here(config, work, price, today)
        (found.options if isinstance(option, Option) else found.discarded).append(option)  # type: ignore[arg-type]
        if isinstance(option, Option):
            break  # method: auto trains here by the first that fits


def _as_planned(run: Run, work: Work) -> Work:
    """The work with the times of the ladder's own plan, which may rest on a probe."""
    record = run.run_folder.record("plan.json") if at_hand(run) else None
    try:
        rungs = plan_from_json(record["result"]).rungs if record else ()
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or damaged: what it knew is lost
        rungs = ()
    for rung in rungs:
        if (rung.model, rung.method, rung.device.name) == (work.model, work.method, work.device.name):
            return replace(work, train_s=rung.train_s, eval_s=rung.eval_s)
    return work


def _total(
    run: Run,
    choice: Choice,
    rows: dict[str, Rows],
    shapes: dict[str, ModelShape],
    num_rows: int,
    offers: Sequence[Offer],
    notes: list[str],
    today: date,
) -> tuple[Total | None, Serving | None]:
    config = run.config
    picked = choice.picked or (choice.options[0] if choice.options else None)
    if config.traffic is None or picked is None:
        return None, None
    shape, mine = shapes[picked.model], rows[picked.model]
    others = [o for o in choice.options if o.model == picked.model and o is not picked]
    measured, more = known_rates(run.folder, picked.model)
    notes += more
    routes = own_routes(shape, shape.num_params / 1e9, config.traffic, offers, measured)
    mean = sum(mine.counts.lengths) / len(mine.counts.lengths)
    shots = round(config.decide.num_shots * mean)
    apis = api_routes(config.traffic, shots, config.decide.endpoints, today)
    total = total_of(config, [picked, *others], mine, num_rows, routes, apis)
    return total, serving_of(config.traffic, routes, apis, offers, measured)


def _notes(config: RunConfig, looked: Sample, shapes: dict[str, ModelShape]) -> list[str]:
    notes = ["curation may drop rows: hours and dollars are of all that were counted"]
    if config.engine != "shoestring":
        notes.append(f"hours and memory are those of Shoestring's own loop; {config.engine} may take more")
    if not looked.is_count_exact:
        notes.append(f"the number of rows is estimated: {looked.how}")
    for model, shape in shapes.items():
        if shape.gated == "yes" and not folder_at_hand(model):
            notes.append(f"{model}: the hub asks for consent before it can be downloaded; licence: {shape.licence}")
        elif not shape.licence.lower().startswith(PERMISSIVE):
            notes.append(f"{model}: licence {shape.licence}; read it before use")
    if config.traffic:
        notes.append("the total compares dollars alone: 'shoestring decide' measures what prompting reaches")
    return notes


def at_hand(run: Run) -> bool:
    """Whether every model of the ladder lies on this machine, tokenizer included, so that its rungs can be planned."""
    try:
        return all(folder_at_hand(model) is not None for model in models_of(run.config))
    except ModelError:
        return False


def keep(run: Run, answer: dict[str, Any]) -> Path:
    """Write choice.json, and the report with it; returns the report's path. Raises: RunFolderError."""
    with run.run_folder.locked():
        if not (run.folder / "run.yaml").is_file():
            closing.write_run_file(run)
        write_json(run.folder / "choice.json", answer)
        return run.write_report()
