"""`shoestring plan`: what training takes here and elsewhere, which of it to take, and the bill over the months."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ModelError, RunFolderError
from ..plan.figures import (
    about,
    age_text,
    bill_in_words,
    count_text,
    discount_text,
    hours_text,
    price_text,
    risk_text,
    usd_text,
    where_text,
)
from ..units import gib, usd
from .output import emit, say, warn
from .progress import Screen
from .running import execute, open_run, result_of, show_plan
from .serving_cost import show_serving
from .tables import GAP, WIDTH_OFF_TERMINAL, table, width_of

if TYPE_CHECKING:
    from ..recipe import Run
    from ..stages.choosing import Weighed

MOST_ROWS = 8  # of a table that is not asked for whole


def command(target: str, runs_dir: Path, show_all: bool, probes: bool, trace_file: Path | None, is_json: bool) -> int:
    """Plan the ladder where its models are at hand; weigh every machine and service; print, and write choice.json."""
    from ..plan.spot_trace import read_trace
    from ..stages import spotting
    from ..stages.choosing import at_hand, keep, weigh
    from ..stages.preparing import count_again
    from ..stages.probing import forget_outrun, plan_probed, track_record
    from ..stages.told import rung_told, told

    trace = read_trace(trace_file) if trace_file else None
    run = open_run(target, runs_dir)
    is_here = at_hand(run)
    if is_here or probes:  # a probe needs the models: what is missing is told
        forget_outrun(run)
        execute(run, "plan")
        count_again(run)
    if probes:
        with Screen() as screen:
            plan_probed(run, screen.progress, screen.log)
    weighed: Weighed | None = None
    try:
        weighed = weigh(run)
    except (DataError, ModelError) as error:
        if not is_here:
            raise
        warn(f"note: machines elsewhere are not weighed: {error}")
    answer: dict[str, Any] = told(weighed, run.config.name) if weighed else {"name": run.config.name}
    if weighed is not None:
        answer["spot"] = spotting.told(run, weighed, trace)
        if trace and answer["spot"] is None:
            warn("note: no spot machine is left among the options to try on the trace; --all says why")
    ladder = result_of(run, "plan.json") if is_here else None
    if ladder is not None and weighed is not None:
        rungs = [rung_told(rung, weighed.today) for rung in ladder["rungs"]]
        answer |= {"rungs": rungs, "rung_notes": ladder["notes"]}
    record = track_record(run.folder.parent)
    answer["track_record"] = {"runs_off_frac": list(record.runs), "launches_off_frac": list(record.launches)}
    if weighed is not None:
        try:
            answer["report"] = str(keep(run, answer))
        except RunFolderError as error:
            warn(f"note: the plan is not kept: {error}")
    if is_json:
        emit(answer)
        return 0
    if ladder is not None:
        show_plan(run)
        say()
    if weighed is not None:
        show(answer, run, show_all)
    if record.words:
        say(f"{record.words}.")
    return 0


def show(answer: dict[str, Any], run: Run, show_all: bool) -> None:
    """The tables a person decides from."""
    _show_data(answer)
    options = answer["options"]
    listed = [o for o in options if show_all or o["is_listed"]]
    if listed:
        say()
        say(_options_table(listed))
    say()
    say(f"Take {answer['why']}." if answer["pick"] else f"{answer['why'][:1].upper()}{answer['why'][1:]}.")
    _show_discarded(answer, run, show_all)
    if answer["spot"]:
        _show_spot(answer["spot"])
    if answer["total"]:
        _show_total(answer["total"], show_all)
    if answer["serving"]:
        show_serving(answer["serving"])
    for note in answer["notes"]:
        say(f"note: {note}")
    if "report" in answer:
        say(f"With the plot: {answer['report']}")


def _show_data(answer: dict[str, Any]) -> None:
    said: dict[str, list[str]] = {}  # models with equal lengths share a line
    for model in answer["data"]["models"]:
        tokens, longest = model["tokens_per_row"], model["longest_row_tokens"]
        what, longest_what = ("pairs", "the longest side") if model["is_pairs"] else ("rows", "the longest")
        text = (
            f"{model['rows_train']['value']:,} training {what} of {_plain(tokens)} tokens, {longest_what} "
            f"{longest['value']:,.0f} ({tokens['source'].removeprefix('the data files; ')}); "
            f"{model['rows_eval']['value']:,} held out"
        )
        said.setdefault(text, []).append(model["model"])
    for text, models in said.items():
        say(f"{', '.join(models)}: {text}")


def _plain(figure: dict[str, Any]) -> str:
    text = f"{figure['value']:,.0f}"
    return f"{text} ({figure['low']:,.0f} to {figure['high']:,.0f})" if "low" in figure else text


def _options_table(options: list[dict[str, Any]]) -> str:
    several = len({o["model"] for o in options}) > 1
    is_late = any("late" in o["risk"]["unit"] for o in options if o["risk"]["value"] is not None)
    heads = [
        "dollars",
        "hours",
        "late" if is_late else "interrupted",
        "machine or service",
        "trains",
        "memory",
        "price",
        "seen",
    ]
    rows, marked = [], None
    for number, option in enumerate(options):
        marked = number if option["is_pick"] else marked
        peak = option.get("peak_bytes")
        trains = f"{option['method']}, {option['precision']}"
        rows.append(
            [
                usd_text(option["usd"]),
                hours_text(option["hours"]),
                risk_text(option["risk"]),
                where_text(option) + (" <- take" if option["is_pick"] else ""),
                f"{option['model']}: {trains}" if several else trains,
                f"{gib(peak['high'])} of {gib(option['device_bytes']['value'])}" if peak else "",
                price_text(option["price"]),
                age_text(option["price"]),
            ]
        )
    drop = ("price", "memory", "seen", "trains")
    return _narrowed(heads, rows, drop=drop, marked=marked, flexible="machine or service")


def _narrowed(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    drop: Sequence[str],
    flexible: str,
    marked: int | None = None,
) -> str:
    """The table, without as many of the columns in drop, first to last, as a narrow terminal has no room for."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_OFF_TERMINAL
    widths = {head: max(width_of(row[i]) for row in (heads, *rows)) for i, head in enumerate(heads)}
    left = list(heads)
    for head in drop:
        if sum(widths[h] + len(GAP) for h in left) - len(GAP) > room:
            left.remove(head)
    places = [heads.index(head) for head in left]
    right = [i for i, head in enumerate(left) if head in ("late", "interrupted", "memory", "seen")]
    kept = [[row[i] for i in places] for row in rows]
    return table(left, kept, right=right, marked=marked, flexible=left.index(flexible))


def _show_discarded(answer: dict[str, Any], run: Run, show_all: bool) -> None:
    out = answer["discarded"]
    if not out["rows"]:
        return
    say()
    counts = ", ".join(f"{f['value']} {code.replace('_', ' ')}" for code, f in out["by_reason"].items())
    more = sum(not option["is_listed"] for option in answer["options"])
    if not show_all:
        say(
            f"Not shown: {more} options that cost more and take longer; {out['num']['value']} that are out ({counts}). "
            f"All, with reasons: shoestring plan {run.run_file or run.folder} --all"
        )
        return
    rows = [
        (
            one["code"].replace("_", " "),
            " ".join(p for p in (one.get("gpu", ""), "spot" if one["is_spot"] else "", one.get("seller", "")) if p),
            f"{one['model']}{' by ' + one['method'] if one.get('method') else ''}",
            one["reason"],
        )
        for one in out["rows"]
    ]
    say(table(("out because", "where", "what", "reason"), rows, flexible=3))


def _show_spot(spot: dict[str, Any]) -> None:
    trace = spot["trace"]
    on = "with drawn interruptions and waits"
    if trace:
        rate = trace["interruptions_per_h"]["value"]
        taken = "no running hour" if rate is None else f"{rate:.2g} interruptions a running hour"
        on = f"on {trace['file']} ({about(trace['length_h']['value'])}, "
        on += f"a machine {trace['up_frac']['value']:.0%} of it, {taken})"
    say()
    say(f"Spot machines, {spot['simulated']['value']:,} trainings each {on}:")
    is_due = any("done_by_deadline" in one for one in spot["options"])
    heads = ["machine", "discount", "half done in", "nine in ten in", "dollars"]
    heads += ["in time", "in time by switching", "late", "on demand alone"] if is_due else []
    rows = []
    for one in spot["options"]:
        finish, policy = one["finish_h"], one.get("policy")
        row = [
            one["words"],
            discount_text(one.get("discount_frac")),
            *(_ended(finish, key) for key in ("value", "high")),
            "" if one["usd"]["value"] is None else usd_text(one["usd"]),
        ]
        if is_due:
            row.append(f"{one['done_by_deadline']['value']:.0%}")
            row += [usd_text(policy["usd"]), risk_text(policy["late"])] if policy else ["no such machine on demand", ""]
            row.append(usd_text(policy["on_demand_alone_usd"]) if policy else "")
        rows.append(row)
    say(_narrowed(heads, rows, drop=("on demand alone", "discount"), flexible="machine"))
    alike: dict[str, list[str]] = {}
    for known in spot["hazards"]:
        alike.setdefault(known["words"].removeprefix(f"{known['seller']}: "), []).append(known["seller"])
    for words, sellers in alike.items():
        say(f"{', '.join(sellers)}: {words}")


def _ended(finish: dict[str, Any], key: str) -> str:
    hours = finish.get(key, finish["value"])
    return "never" if hours is None else about(hours)


def _show_total(total: dict[str, Any], show_all: bool) -> None:
    traffic = total["traffic"]
    asked, months = traffic["requests_per_month"]["value"], traffic["months"]["value"]
    say()
    tokens = f"{traffic['prompt_tokens']['value']:,} + {traffic['completion_tokens']['value']:,} tokens"
    over = f"{months:g} month{'s' if months != 1 else ''}"
    say(f"Over {over} at {asked:,.0f} requests a month of {tokens}:")
    once = "; ".join(f"{p['part']} {usd(p['usd']['value'])}" for p in total["once"] if p["usd"]["value"])
    say(f"paid once: {usd_text(total['once_usd'])} ({once})")
    served = [w for w in total["own"] if show_all or w["is_listed"]]
    evens = {e["against"]: e["requests_per_month"] for e in total["break_even"]}
    rows = [
        ("fine-tuned", w["name"], usd_text(w["usd"]), usd_text(w["usd_per_month"]), "", age_text(w["price"]))
        for w in served
    ]
    apis = total["apis"] if show_all else total["apis"][:: max(1, len(total["apis"]) // (MOST_ROWS - 3))]
    for w in apis:
        pays = count_text(evens[w["name"]])
        rows.append(
            ("prompted", w["name"], usd_text(w["usd"]), usd_text(w["usd_per_month"]), pays, age_text(w["price"]))
        )
    heads = ("model", "answers from", "total", "a month", "training pays from, a month", "seen")
    say(_narrowed(heads, rows, drop=("seen", "a month"), flexible="answers from"))
    say(bill_in_words(total))
