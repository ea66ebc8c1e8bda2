"""Sections of the report below the scores: predicted against actual, failures, settings, environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..records import Estimate, Message
from ..serve.card import merge_choice
from ..units import SECONDS_PER_HOUR, count, duration, gib, usd
from .folder import RunFiles
from .svg import ratio_bar
from .text import Markup, block, clip, details, esc, join, number, section, table

# Of a training's record: which routes were really taken.
RAN_ON = (
    "packing", "packing_reason", "sharing_factor", "attention", "loss_path", "base_format", "base_reason", "dtype",
    "adapters", "adapters_reason", "kernels", "kernels_reason", "micro_batch_tokens", "recompute", "offload", "compile",
    "optimizer", "dev_evaluations",
)  # fmt: skip
MAX_FAILURES = 5
MAX_TURN_CHARACTERS = 160  # of a turn before the last


def _words(code: Any) -> str:
    return str(code).replace("_", " ").replace("-", " ")


UNITS = {"s": ("time", duration), "bytes": ("memory", gib), "usd": ("dollars", usd)}


def predicted(run: RunFiles) -> Markup:
    """What was predicted beside what happened, from the ledger; rungs not yet run with their prediction alone."""
    rows = []
    seen = set()
    newest = {entry["item"]: place for place, entry in enumerate(run.ledger)}
    for place, entry in enumerate(run.ledger):
        name = entry["item"] if newest[entry["item"]] == place else f"{entry['item']} (earlier)"
        predictions = entry.get("predicted") or {}
        for key, spread in sorted(predictions.items(), key=lambda item: list(UNITS).index(item[0])):
            seen.add(entry["item"])
            estimate = Estimate(spread["expected"], spread["low"], spread["high"])
            rows.append(_predicted_row(name, key, estimate, entry["actual"].get(key)))
    for rung in run.plan.rungs if run.plan else ():
        if any(rung.model == r.model and r.train for r in run.rungs) or any(rung.model in item for item in seen):
            continue
        for key, estimate in (("s", rung.train_s), ("bytes", rung.peak_bytes), ("usd", rung.cost_usd)):
            rows.append(_predicted_row(f"{rung.model} · not finished", key, estimate, None))
    spent = [e for e in run.ledger if e["actual"].get("usd") is not None]
    live = [
        [esc(f"{name} · train, under way"), esc(duration(s)), esc(usd(s * run.price_usd_per_hour / SECONDS_PER_HOUR))]
        for name, s in run.live_s.items()
    ]
    if not rows and not spent:
        return Markup("")
    parts: list[str] = []
    if rows:
        head = ["what", "predicted", "range", "actual", "ratio", "¼ to 4 times"]
        parts.append(table(head, rows, numeric=(1, 2, 3, 4), wide=(5,)))
    if spent:
        cells = [
            [
                esc(_item(e["item"])),
                esc(duration(e["actual"].get("s", 0.0))),
                esc(usd(e["actual"]["usd"])),
                esc(str(e["at"])[:16].replace("T", " ")),
            ]
            for e in spent
        ]
        cells += [[*cell, esc("not yet")] for cell in live]
        entries = "entry" if len(cells) == 1 else "entries"
        total = esc(f"Every expense: {len(cells)} {entries}, {usd(run.spent_usd)} in all")
        parts.append(details(total, table(["item", "time", "dollars", "entered (UTC)"], cells, numeric=(1, 2))))
    sources = {r.price_source for r in run.plan.rungs} if run.plan else set()
    prices = {r.price_usd_per_hour for r in run.plan.rungs} if run.plan else set()
    if sources:
        each = ", ".join(f"${p:g} an hour" for p in sorted(prices))
        parts.append(f'<p class="note">Price: {esc(each)}; {esc("; ".join(sorted(sources)))}.</p>')
    if not rows:
        return section("Expenses", *parts)
    lead = "The band is the predicted range, the dot what happened; the middle is the expected value."
    return section("Predicted against actual", *parts, lead=lead)


def _item(item: str) -> str:
    return item.removeprefix("rungs/").replace("/", " · ")


def _predicted_row(item: str, key: str, estimate: Estimate, actual: float | None) -> list[Markup]:
    name, show = UNITS.get(key, (key, count))
    ratio = actual / estimate.value if actual is not None and estimate.value > 0 else None
    return [
        esc(f"{_item(item)}: {name}"),
        esc(show(estimate.value)),
        esc(f"{show(estimate.low)} – {show(estimate.high)}"),
        esc("not yet" if actual is None else show(actual)),
        esc("—" if ratio is None else f"{ratio:.2f}×"),
        ratio_bar(estimate, actual),
    ]


def searches(run: RunFiles) -> Markup:
    """Learning rates that were tried before training, rung by rung."""
    shown = []
    for rung in run.rungs:
        found = rung.searched
        if not found:
            continue
        rows = [
            [
                esc(f"{trial['learning_rate']:.3g}"),
                esc(f"{trial['num_tokens']:,}"),
                esc("—" if trial["dev_loss"] is None else f"{trial['dev_loss']:.4f}"),
                esc(trial["stopped"]),
            ]
            for trial in found["trials"]
        ]
        said = f"{found['tokens_frac']:.0%} of training's tokens, {duration(found['wall_s'])}; {found['compared']}"
        shown.append(f'<h3>{esc(rung.model)}</h3><p class="note">{esc(said)}.</p>')
        shown.append(table(["learning rate", "tokens", "dev loss", "stopped"], rows, numeric=(0, 1, 2)))
        shown.append(f'<p class="note">{esc(found["note"])}.</p>' if found["note"] else "")
    return section("Learning-rate search", *shown) if shown else Markup("")


def forgotten(run: RunFiles) -> Markup:
    """General texts and questions before and after training, a row a rung; then what is to be told of them."""
    rows, notes = [], []
    for rung in run.rungs:
        found = rung.regression
        if not found:
            continue
        ratio, lost = found["perplexity_ratio"], found["lost"]
        checks = f"{len(lost)} of {found['num_passed_before']}" if found["num_passed_before"] else "base answers none"
        rows.append(
            [
                esc(rung.model),
                esc(f"{found['perplexity_before']:,.1f}"),
                esc(f"{found['perplexity_after']:,.1f}"),
                esc(f"{ratio['value']:,.2f}× ({ratio['low']:,.2f}–{ratio['high']:,.2f})"),
                esc(checks),
            ]
        )
        if lost:
            notes.append(details(esc(f"{rung.model}: questions lost"), *(f"<p>{esc(prompt)}</p>" for prompt in lost)))
        if found["warning"]:
            notes.append(join(f'<p class="note"><b>{esc(rung.model)}:</b> {esc(found["warning"])}.</p>'))
    if not rows:
        return Markup("")
    head = ["rung", "perplexity, base", "after training", "ratio (95\u00a0% interval)", "questions lost"]
    lead = "A fixed pack of general texts and short questions, before and after training."
    return section("What was forgotten", table(head, rows, numeric=(1, 2, 3, 4)), *notes, lead=lead)


def failures(run: RunFiles) -> Markup:
    """A handful of held-out rows each arm got wrong."""
    chosen = (run.verdict or {}).get("arm")
    parts = []
    for arm in reversed(run.arms):
        failed = [row for row in arm.rows if row.score < 1.0]
        if not failed:
            if arm.rows:
                parts.append(f'<p class="note">{esc(arm.arm)}: none of {len(arm.rows):,} rows failed.</p>')
            continue
        share = esc(f"{len(failed):,} of {len(arm.rows):,} rows below full score")
        rows = [_failed_row(row, run.prompts.get(row.id, [])) for row in spread_out(failed)]
        parts.append(details(join(f"{esc(arm.arm)} <small>{share}</small>"), *rows, is_open=arm.arm == chosen))
    if not parts:
        return Markup("")
    return section(
        "Where it fails", *parts, lead="Held-out rows below full score, from the worst upwards; a handful an arm."
    )


def spread_out(failed: list[Any]) -> list[Any]:
    """MAX_FAILURES rows from worst to best, rows that could not be scored as meant among them."""
    ordered = sorted(failed, key=lambda row: (row.score, row.failure is None))
    if len(ordered) <= MAX_FAILURES:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (MAX_FAILURES - 1))] for i in range(MAX_FAILURES)]


def _failed_row(row: Any, prompt: Sequence[Message]) -> Markup:
    """The row; of a chat the turns before the last one and the system prompt too, shortened."""
    why = f'<p class="why">{esc(row.failure)}</p>' if row.failure else ""
    turns = [f"<dt>{esc(turn.role)}</dt><dd>{block(clip(turn.text, MAX_TURN_CHARACTERS))}</dd>" for turn in prompt[:-1]]
    asked = prompt[-1].text if prompt else row.prompt
    return Markup(
        f'<div class="row">{why}<dl>{"".join(turns)}<dt>prompt</dt><dd>{block(asked)}</dd>'
        f"<dt>expected</dt><dd>{block(row.expected)}</dd>"
        f"<dt>output</dt><dd>{block(row.output)}</dd><dt>score</dt><dd>{number(row.score)}</dd></dl></div>"
    )


def settings(run: RunFiles) -> Markup:
    """Every training value with where it came from, and what training really ran on, a rung at a time."""
    if run.plan is None:
        return Markup("")
    parts = []
    for rung in run.plan.rungs:
        reasons = rung.settings.reasons
        rows = [
            [join(f"<code>{esc(key)}</code>"), esc(_value(getattr(rung.settings, key))), esc(why)]
            for key, why in reasons.items()
            if hasattr(rung.settings, key)
        ]
        facts = f"{count(rung.num_params)} parameters, {rung.method}, {count(rung.num_adapter_params)} trained"
        where = f"{rung.verdict.replace('_', ' ')}: {rung.reason}"
        where += f". Time: {rung.timed}" if rung.timed else ""
        memory = ", ".join(f"{_words(k)} {gib(v)}" for k, v in rung.parts_bytes.items() if v)
        trained = next((r.train.settings for r in run.rungs if r.model == rung.model and r.train), {})
        ran_on = [[esc(_words(key)), esc(_value(trained[key]))] for key in RAN_ON if key in trained]
        parts.append(
            details(
                join(f"{esc(rung.model)} <small>{esc(facts)}</small>"),
                f'<p class="note">{esc(where)}. Memory by part: {esc(memory)}.</p>',
                table(["setting", "value", "because"], rows, wide=(1, 2)),
                table(["training ran on", "what"], ran_on, wide=(1,)) if ran_on else "",
            )
        )
    notes = [f'<p class="note">{esc(note)}</p>' for note in run.plan.notes]
    return section("Settings and their reasons", *parts, *notes)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "left open", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def environment(run: RunFiles) -> Markup:
    """Versions, machine and files, from meta.json."""
    rows = [[esc(key), esc(value)] for key, value in _flat(run.meta)]
    if run.exported:
        check = run.exported.get("merge_check") or {}
        rows.append([esc("trained weights"), join(f"<code>{esc(run.exported.get('adapter_dir', ''))}</code>")])
        rows.append([esc("merged weights"), join(f"<code>{esc(run.exported.get('merged_dir', ''))}</code>")])
        if check:
            said = (
                f"{'passed' if check.get('passed') else 'failed'}: mean |Δ log-probability| "
                f"{check.get('mean_abs_logprob_diff', 0):.2g} on {check.get('num_tokens', 0):,} tokens, same top token "
                f"{check.get('top1_agreement_frac', 0):.2%} "
                f"(training itself moves {check.get('adapter_effect', 0):.2g}, "
                f"rounding {check.get('rounding_noise', 0):.2g})"
            )
            said += "".join(f"; {fault}" for fault in check.get("faults", ()))
            rows.append([esc("merged against trained"), esc(said)])
        if check.get("candidates"):
            rows.append([esc("of two merges"), esc(merge_choice(check["candidates"]))])
    if not rows:
        return Markup("")
    return section("Environment", details(esc("Versions, machine, files"), table(["what", "value"], rows, wide=(1,))))


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{prefix}{_words(key)}"
        if isinstance(inner, dict):
            yield from _flat(inner, f"{name}: ")
        elif isinstance(inner, list):
            yield name, " ".join(str(v) for v in inner)
        elif key == "memory_bytes":
            yield f"{prefix}memory", gib(inner)
        else:
            yield name, str(inner)
