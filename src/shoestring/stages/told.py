"""What `shoestring plan --json` prints: every number with its unit, where it comes from, and how old that is.

A number is an object: value, low and high where it is a range, unit, source, observed_at and age_days (both null where
the source has no date, which the source then says).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ModelError
from ..files import write_json
from ..market.choice import Choice, is_sure
from ..market.options import Discarded, Option
from ..market.terms import term
from ..market.total import BreakEven, Total, Way
from ..market.work import Rows
from ..plan.figures import Figure, figure
from ..plan.shapes import ModelShape
from ..plan.throughput import prior
from ..records import Device, Estimate
from .choosing import Weighed, weigh
from .told_serving import serving_told

if TYPE_CHECKING:
    from ..recipe import Run


def told(weighed: Weighed, name: str) -> dict[str, Any]:
    """The whole answer."""
    choice, today = weighed.choice, weighed.today
    options = [_option(weighed, i) for i in range(len(choice.options))]
    for place in worth_listing(choice):
        options[place]["is_listed"] = True
    return {
        "name": name,
        "today": today.isoformat(),
        "data": _data(weighed),
        "pick": None if choice.pick is None else options[choice.pick],
        "why": choice.why,
        "options": options,
        "discarded": _discarded(choice, today),
        "total": None if weighed.total is None else _total(weighed, weighed.total),
        "serving": None if weighed.serving is None else serving_told(weighed.serving, today),
        "notes": list(weighed.notes),
    }


def note(run: Run) -> None:
    """choice.json of a run under way, for its report; that it cannot be had stops nothing."""
    try:
        write_json(run.folder / "choice.json", told(weigh(run), run.config.name))
    except (DataError, ModelError) as error:
        run.log(f"The bill over the months is not added up: {error}")


def worth_listing(choice: Choice) -> set[int]:
    """Places of the Pareto list, the pick, the cheapest of each model and of each kind (spot, managed, here)."""
    cheapest: dict[tuple[str, bool], int] = {}
    for place, option in enumerate(choice.options):
        cheapest.setdefault((option.kind, option.is_spot), place)
    for place, option in enumerate(choice.options):
        if is_sure(option):
            cheapest.setdefault((option.model, False), place)
    return {*choice.best, *cheapest.values(), *([] if choice.pick is None else [choice.pick])}


# ---- data and models ------------------------------------------------------------------------


def _data(weighed: Weighed) -> dict[str, Any]:
    today = weighed.today
    return {
        "rows": figure(weighed.num_rows, "rows", f"the data files: {weighed.read}", today, today),
        "models": [_model(model, weighed.shapes[model], rows, today) for model, rows in weighed.rows.items()],
    }


def _model(model: str, shape: ModelShape, rows: Rows, today: date) -> dict[str, Any]:
    counted = f"the data files; {rows.how}"

    def counts(value: Any, unit: str) -> Figure:
        return figure(value, unit, counted, today, today)

    lengths = rows.counts.lengths
    return {
        "model": model,
        "licence": shape.licence,
        "gated": shape.gated,
        "is_pairs": bool(rows.counts.rejected),
        "num_params": figure(shape.num_params, "parameters", f"{shape.source}, grade {shape.grade}", None, today),
        "rows_train": counts(rows.num_train, "rows"),
        "rows_dev": counts(rows.num_dev, "rows"),
        "rows_eval": counts(rows.num_eval, "rows"),
        "tokens_per_row": counts(rows.error.scaled(sum(lengths) / len(lengths)), "tokens"),
        "longest_row_tokens": counts(rows.error.scaled(max(rows.counts.paths)), "tokens"),
        "train_tokens": counts(rows.train_tokens, "tokens, all training rows once"),
        "loss_frac": counts(rows.counts.loss_frac, "share of the tokens that bear loss"),
    }


# ---- options --------------------------------------------------------------------------------


def _option(weighed: Weighed, index: int) -> dict[str, Any]:
    choice, today = weighed.choice, weighed.today
    o = choice.options[index]
    work = o.work

    def money(value: Any, unit: str = "USD") -> Figure:
        return figure(value, unit, f"{o.source} ({o.basis})", o.observed_at, today)

    def timed(value: Estimate | None, unit: str = "hours") -> Figure:
        if work is None or value is None:
            return figure(None, unit, "not stated by the service", o.observed_at, today)
        row = prior(work.device, "load_s")
        source = f"predicted: plan.throughput, its priors are {row.basis}; {weighed.rows[o.model].how}"
        return figure(value, unit, source, date.fromisoformat(row.as_of), today)

    record: dict[str, Any] = {
        "kind": o.kind,
        "model": o.model,
        "method": o.method,
        "precision": o.precision,
        "gpu": o.gpu or None,
        "seller": o.seller,
        "region": o.region or None,
        "is_spot": o.is_spot,
        "is_pick": index == choice.pick,
        "is_pareto": index in choice.best,
        "is_listed": False,
        "words": o.words,
        "num_gpus": money(o.num_gpus, "GPUs rented"),
        "usd": money(o.usd),
        "hours": timed(o.hours, "hours from order to result"),
        "billed_hours": timed(o.billed_h, "hours billed"),
        "price": money(o.price_usd, o.price_unit),
        "risk": _risk(o, today),
        "notes": list(o.notes),
    }
    if work is not None:
        assert o.setup_h is not None
        boot = term("boot_s", o.seller)
        record |= {
            "setup_hours": figure(
                o.setup_h, "hours", f"{boot.source}; installation and download assumed", boot.as_of, today
            ),
            "train_hours": timed(work.train_s.scaled(1 / 3600)),
            "evaluate_hours": timed(work.eval_s.scaled(1 / 3600)),
            "peak_bytes": _predicted_bytes(work.memory.device, "bytes of the device", weighed, o),
            "allocated_bytes": _predicted_bytes(work.memory.allocated, "bytes of tensors", weighed, o),
            "device_bytes": figure(work.device.memory_bytes, "bytes", work.device.dtype_reason, today, today),
        }
        if index in choice.best or index == choice.pick:
            record["settings"] = settings_told(asdict(work.settings), today)
    return record


def _risk(option: Option, today: date) -> Figure:
    """Chance of being late; without a deadline, of being interrupted."""
    if option.hours is None:
        return figure(None, "chance of being late", "not stated by the service", option.observed_at, today)
    row = term("hazard_per_h", option.seller)
    what = "interrupted at least once" if option.finish_frac is None else "late"
    source = row.source if option.is_spot else "spread of the predicted hours; the machine is not taken away"
    return figure(option.risk_frac, f"chance of being {what}", source, row.as_of, today)


def _predicted_bytes(value: Estimate, unit: str, weighed: Weighed, option: Option) -> Figure:
    shape = weighed.shapes[option.model]
    source = f"predicted: plan.memory on {shape.source}; {weighed.rows[option.model].how}"
    return figure(value, unit, source, weighed.today, weighed.today)


UNITS = {
    "lora_rank": "rank",
    "lora_alpha": "scale",
    "seq_len": "tokens",
    "seed": "seed",
    "num_epochs": "passes",
    "patience": "evaluations",
    "recompute": "layers",
    "dpo_beta": "beta",
    "kto_beta": "beta",
    "orpo_lambda": "lambda",
    "max_grad_norm": "norm",
}
ENDINGS = {"_tokens": "tokens", "_frac": "share", "_s": "s", "_usd": "USD", "_rate": "per step", "_decay": "per step"}


def unit_of(key: str) -> str:
    """Unit of a training value: by the table, by the ending of its name, or a count of what it names."""
    ending = next((unit for end, unit in ENDINGS.items() if key.endswith(end)), None)
    return UNITS.get(key) or ending or key.removeprefix("num_").replace("_", " ")


def settings_told(settings: Mapping[str, Any], today: date) -> dict[str, Any]:
    """Training values, each number with the reason it was derived by."""
    reasons = settings["reasons"]
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "reasons":
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        made[key] = figure(value, unit_of(key), reasons.get(key, "derived"), today, today) if is_number else value
    return made | {"reasons": reasons}


def _discarded(choice: Choice, today: date) -> dict[str, Any]:
    codes: dict[str, int] = {}
    for one in choice.discarded:
        codes[one.code] = codes.get(one.code, 0) + 1
    source = "counted by this plan"
    return {
        "num": figure(len(choice.discarded), "options", source, today, today),
        "by_reason": {code: figure(num, "options", source, today, today) for code, num in codes.items()},
        "rows": [_out(one) for one in choice.discarded],
    }


def _out(one: Discarded) -> dict[str, Any]:
    return {k: v for k, v in asdict(replace(one, option=None)).items() if (v != "" and k != "option") or k == "reason"}


# ---- the ladder on the present machine ------------------------------------------------------


def rung_told(rung: Mapping[str, Any], today: date) -> dict[str, Any]:
    """A rung of plan.json in the same form."""
    device = Device(**rung["device"])
    row = prior(device, "load_s")
    made = date.fromisoformat(row.as_of)

    def estimate(key: str, unit: str, source: str, day: date | None) -> Figure:
        return figure(Estimate(**rung[key]), unit, source, day, today)

    counted = "the model's tokenizer, on the curated rows"
    timed = f"predicted: plan.throughput, its priors are {row.basis}"
    if rung.get("timed"):
        timed, made = rung["timed"], today
    measured = timed if rung.get("is_probed") else "predicted: plan.memory"
    return {
        **{k: rung[k] for k in ("model", "method", "verdict", "reason", "price_source")},
        "device": {
            **{k: v for k, v in asdict(device).items() if isinstance(v, str)},
            "memory_bytes": figure(device.memory_bytes, "bytes", "the machine, or the GPU table", today, today),
            "num_threads": figure(device.num_threads, "threads", "the machine", today, today),
        },
        "num_params": figure(rung["num_params"], "parameters", "config.json or the model table", today, today),
        "num_adapter_params": figure(rung["num_adapter_params"], "parameters", "counted from the shape", today, today),
        "num_train_tokens": figure(rung["num_train_tokens"], "tokens, all epochs", counted, today, today),
        "num_steps": figure(rung["num_steps"], "optimizer steps", counted, today, today),
        "peak_bytes": estimate("peak_bytes", "bytes", measured, today),
        "device_bytes": figure(rung["device_bytes"], "bytes", "the machine, or the GPU table", today, today),
        "parts_bytes": {
            part: figure(size, "bytes", "predicted: plan.memory", today, today)
            for part, size in rung["parts_bytes"].items()
        },
        "train_s": estimate("train_s", "s", timed, made),
        **({"search_s": estimate("search_s", "s", timed, made)} if rung.get("search_s") else {}),
        "eval_s": estimate("eval_s", "s", timed, made),
        "price_usd_per_hour": figure(rung["price_usd_per_hour"], "USD per hour", rung["price_source"], today, today),
        "cost_usd": estimate("cost_usd", "USD", f"{timed}; {rung['price_source']}", made),
        "settings": settings_told(rung["settings"], today),
    }


# ---- the whole bill -------------------------------------------------------------------------


def _total(weighed: Weighed, bill: Total) -> dict[str, Any]:
    today, traffic = weighed.today, bill.traffic
    asked_for = traffic.requests_per_month

    def asked(value: float, unit: str) -> Figure:
        return figure(value, unit, "the run file", today, today)

    best = bill.own[0]
    drawn = [*_best_of_kinds(bill), *_spread(bill.apis)]
    return {
        "traffic": {
            "requests_per_month": asked(traffic.requests_per_month, "requests per month"),
            "prompt_tokens": asked(traffic.prompt_tokens, "tokens per request"),
            "completion_tokens": asked(traffic.completion_tokens, "tokens per request"),
            "months": asked(traffic.months, "months"),
        },
        "best": {"trained": best.trained, "served": best.route.name, "usd": _bill(best, bill, asked_for, today)},
        "once": [
            {"part": p.name, "usd": figure(p.usd, "USD", p.source, _day(best, p.name, weighed), today)}
            for p in best.once
        ],
        "once_usd": figure(
            best.once_usd, "USD, paid once", "the sum of the parts", _day(best, "train", weighed), today
        ),
        "own": [_way(way, bill, today) | {"is_listed": way in drawn} for way in bill.own],
        "apis": [_way(way, bill, today) for way in bill.apis],
        "break_even": [_even(even, best, today) for even in bill.break_evens],
        "curves": [
            {
                "name": way.route.name,
                "kind": way.route.kind,
                "points": [
                    {"requests_per_month": asked(v, "requests per month"), "usd": _bill(way, bill, v, today)}
                    for v in bill.volumes
                ],
            }
            for way in drawn
        ],
    }


def _best_of_kinds(bill: Total) -> list[Way]:
    """Of training the cheapest way of each kind of serving."""
    best: dict[str, Way] = {}
    for way in bill.own:
        best.setdefault(way.route.kind, way)
    return list(best.values())


def _spread(apis: tuple[Way, ...]) -> list[Way]:
    """The cheapest, the middle and the dearest."""
    places = dict.fromkeys((0, len(apis) // 2, len(apis) - 1))
    return [apis[place] for place in places if 0 <= place < len(apis)]


def _day(way: Way, part: str, weighed: Weighed) -> date | None:
    if part in ("train", "evaluate"):
        return next((o.observed_at for o in weighed.choice.options if o.words == way.trained), None)
    return term("curate_rows_per_s").as_of if part == "curate" else weighed.today


def _bill(way: Way, bill: Total, requests: float, today: date) -> Figure:
    route = way.route
    source = f"{route.source} ({route.basis})"
    return figure(bill.usd(way, requests), "USD over the months", source, route.observed_at, today)


def _way(way: Way, bill: Total, today: date) -> dict[str, Any]:
    route, requests = way.route, bill.traffic.requests_per_month
    source = f"{route.source} ({route.basis})"
    record: dict[str, Any] = {
        "name": route.name,
        "kind": route.kind,
        "trained": way.trained or None,
        "price": figure(route.price_usd, route.price_unit, source, route.observed_at, today),
        "usd_per_month": figure(route.usd_per_month(requests), "USD per month", source, route.observed_at, today),
        "usd": _bill(way, bill, requests, today),
        "notes": list(route.notes),
    }
    if route.capacity is not None:
        row, able = term("stream_frac"), route.capacity
        how = able.measured or f"predicted: plan.decode; {row.source}"
        rates = (
            ("requests_per_s", able.requests_per_s, "requests per second and GPU"),
            ("decode_tokens_per_s", able.tokens_per_s, "tokens per second and GPU"),
            ("alone_s", able.alone_s, "s for one request alone"),
        )
        record |= {name: figure(value, unit, how, row.as_of, today) for name, value, unit in rates}
    return record


def _even(even: BreakEven, best: Way, today: date) -> dict[str, Any]:
    volume = figure(even.requests_per_month, "requests per month", even.reason, best.route.observed_at, today)
    return {"against": even.api, "requests_per_month": volume, "reason": even.reason}
