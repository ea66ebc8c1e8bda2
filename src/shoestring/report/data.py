"""The data section: what came in, what was kept, repaired, dropped and flagged, with rows side by side.

Text of rows is shown with secrets and personal data masked: a report is passed on more easily than a data set.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import FieldsConfig
from ..data.codes import CODES
from ..data.language import LANGUAGE_NAMES
from ..data.restore import ADVICE, can_come_back
from ..data.safety import redact
from ..units import SECONDS_PER_HOUR, count, usd
from .data_files import MAX_MEASURED, Case, DataFiles, Measured, read_data
from .folder import RunFiles
from .sides import case_card, cut
from .style import STYLE
from .svg import bars, histogram, share_bar
from .text import Markup, details, esc, join, number, section, table

CHARACTERS_PER_TOKEN = 4  # of English under common tokenizers; only ratios and "about" figures rest on it
MANY_LABELS, NUM_COMMON, NUM_RARE = 24, 12, 6
MAX_LABELS = 300  # more different answers than this are no labels
KEPT = (("train", "rows_train", "s0"), ("dev", "rows_dev", "s1"), ("held out", "rows_eval", "s2"))
SIDE_KEYS = (("train and dev", "s0"), ("held out", "s2"), ("dropped", "s3"))
DECIDED = ("corrected_in_review", "restored")


def data(run: RunFiles, more: str = "", max_measured: int = MAX_MEASURED) -> Markup:
    """The section of a run; more: the address of a page that shows every row, without the code it ends in.

    That page has the suspects too, with a decision on each, so they are not listed here then.
    """
    if run.curated is None:
        return Markup("")
    fields = run.config.data.fields if run.config else FieldsConfig()
    base_dir = Path(str(run.meta["base_dir"])) if run.meta.get("base_dir") else None
    system = run.config.data.system if run.config else ""
    files = read_data(run.folder / "data", base_dir, fields, run.curated, system, max_measured)
    return _section(files, "data/", _costs(run, files), f"shoestring curate {_quoted(run.folder)}", more)


def data_page(folder: Path, base_dir: Path | None = None) -> str:
    """A page of its own for curation without a run: the folder that `shoestring curate FILES` wrote."""
    files = read_data(folder, base_dir, FieldsConfig(), None)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(folder.name)}: curated data</title><style>{STYLE}</style></head>\n"
        f'<body><main><p class="over">Shoestring data report</p><h1>{esc(folder.name)}</h1>'
        f"{_section(files, '', Markup(''), f'shoestring curate FILES --out {_quoted(folder)}')}</main></body></html>\n"
    )


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder.resolve()))


def _section(files: DataFiles, prefix: str, costs: Markup, command: str, more: str = "") -> Markup:
    """prefix: of file names; command: the one that curates again; more: as data takes it."""
    counts = files.receipt.get("counts") or {}
    kept = [(name, int(counts.get(key, 0)), cls) for name, key, cls in KEPT]
    by_code = dict(files.receipt.get("dropped_by_code") or {})
    dropped = [(f"dropped, {words(code)}", n, "s3") for code, n in by_code.items()]
    num_dropped = sum(n for _, n, _ in dropped)
    total = counts.get("rows_in", sum(n for _, n, _ in kept) + num_dropped)
    num_kept = sum(n for _, n, _ in kept)
    lead = f"{total:,} rows in"
    if counts.get("rows_expanded"):
        lead += f", {num_kept + num_dropped:,} examples as each answer of a conversation is one"
    lead += "; "
    lead += f"{num_kept:,} kept, {num_dropped:,} dropped."
    keys = [*kept, ("dropped", num_dropped, "s3")]
    return section(
        "Data",
        share_bar([*kept, *dropped]),
        _legend([(f"{name} {n:,}", cls) for name, n, cls in keys if n]),
        *(f'<p class="note">{esc(note)}</p>' for note in _notes(files)),
        groups("Dropped", by_code, files.dropped, f"whole in {prefix}dropped.jsonl", num_kept + num_dropped, more=more),
        _restoring(by_code, prefix, command),
        groups("Repaired", _of_repair(files, "safe"), files.faults, "mended without a question", more=more),
        groups("Decided in review", _decided(files), files.faults, "by a person, in review.csv", more=more),
        groups(
            "Flagged", _of_repair(files, "ask"), files.faults, "kept as they are, for a person to look at", more=more
        ),
        "" if more else _suspects(files, prefix),
        _choice(files.receipt.get("choice")),
        costs,
        _lengths(files),
        _labels(files),
        lead=lead,
    )


def _legend(keys: Sequence[tuple[str, str]]) -> Markup:
    """A swatch and a name each; keys: (name, class)."""
    return join(
        '<div class="key">', *(f'<span><i class="swatch {c}"></i>{esc(name)}</span>' for name, c in keys), "</div>"
    )


def _restoring(by_code: dict[str, int], prefix: str, command: str) -> Markup:
    """How a dropped row comes back."""
    code = next((code for code in by_code if can_come_back(code)), None)
    if code is None:
        return Markup("")
    return Markup(
        f'<p class="note">To bring rows back, name a code, a LINE or SOURCE:LINE: <code>{esc(command)} --restore '
        f"{esc(code)}</code>. It writes the decision keep into {esc(prefix)}review.csv.</p>"
    )


def _notes(files: DataFiles) -> list[Any]:
    """What could not be read, what curation noted, and the languages where there are several."""
    notes = [*files.problems, *(files.receipt.get("notes") or [])]
    for side, counts in (files.receipt.get("languages") or {}).items():
        if len(counts) > 1:
            each = ", ".join(f"{LANGUAGE_NAMES.get(code, code)} {n:,}" for code, n in counts.items())
            notes.append(f"{side}s by language, where there is enough text to tell: {each}")
    return notes


def words(code: Any) -> str:
    """A code as words."""
    return str(code).replace("_", " ").replace("-", " ")


def _of_repair(files: DataFiles, repair: str) -> dict[str, int]:
    by_code = files.num_faults.most_common()
    return {code: n for code, n in by_code if files.faults[code][0].repair == repair and code not in DECIDED}


def _decided(files: DataFiles) -> dict[str, int]:
    return {code: files.num_faults[code] for code in DECIDED if files.num_faults[code]}


def groups(
    title: str,
    by_code: dict[str, int],
    cases: dict[str, list[Case]],
    shown: str,
    total: int = 0,
    *,
    is_open: bool = False,
    more: str = "",
) -> Markup:
    """One fold a code: how many (of total, if given), what it means, and a few of its rows; more: as data takes it."""
    if not by_code:
        return Markup("")
    folds = []
    for code, n in by_code.items():
        share = f"{n:,}, {_share(n, total)}" if total else f"{n:,}"
        meaning = f'<p class="note">{esc(CODES[code].meaning)}</p>' if code in CODES else ""
        if total and code in ADVICE:
            meaning += f'<p class="note">A decision does not bring it back: {esc(ADVICE[code])}.</p>'
        some = cases.get(code, [])
        rest = f'<p class="note">{len(some)} of {n:,} shown.</p>' if len(some) < n else ""
        if more:
            rest = f'<p><a href="{esc(more + code)}">All {n:,}, side by side</a></p>'
        folds.append(
            details(
                join(f"{esc(words(code))} <small>{esc(share)}</small>"),
                *(meaning, *map(case_card, some), rest),
                is_open=is_open,
            )
        )
    lead = f"{sum(by_code.values()):,} in all, {shown}."
    return join(f'<h3>{esc(title)}</h3><p class="note">{esc(lead)}</p>', *folds)


def _share(n: int, total: int) -> str:
    frac = n / max(total, 1)
    return "under 0.1%" if 0 < frac < 0.001 else f"{frac:.1%}"


def _suspects(files: DataFiles, prefix: str) -> Markup:
    """The ranked rows of review.csv."""
    if not files.suspects:
        return Markup("")
    rows = []
    for rank, row in enumerate(files.suspects, 1):
        place = f"{Path(row.get('source', '')).name}:{row.get('line', '?')}"
        text = join(
            f'<pre dir="auto">{cut(redact(row.get("prompt", "")))}</pre>',
            f'<pre dir="auto" class="answer">{cut(redact(row.get("answer", "")))}</pre>',
        )
        decision = row.get("decision") or "—"
        fixed = row.get("corrected_answer")
        decided = f"{decision}: {fixed}" if decision == "fix" and fixed else decision
        what = f"{rank}. {words(row.get('code', ''))}"
        where = f"{place}, score {_score(row.get('score'))}"
        suspect = join(f'{esc(what)}<p class="at">{esc(where)}</p>')
        rows.append([suspect, esc(redact(row.get("evidence", ""))), text, esc(redact(decided))])
    head = ["suspect of", "because", "prompt and answer", "decision"]
    said = (
        f"{files.num_suspects:,} rows in {prefix}review.csv, the most suspect first; {files.num_decided:,} decided. "
        "None was left out on suspicion alone: write keep, drop or fix into the column decision, and curate again."
    )
    summary = esc(
        f"The first {len(rows)} of {files.num_suspects:,}" if len(rows) < files.num_suspects else "All of them"
    )
    return join(
        f'<h3>Suspects</h3><p class="note">{esc(said)}</p>',
        details(summary, table(head, rows, wide=(1, 2))),
    )


def _score(value: str | None) -> str:
    try:
        return number(float(value or ""), 2)
    except ValueError:
        return value or "—"


def _choice(choice: Any) -> Markup:
    """Rows chosen for a token budget beside random and longest ones of equal tokens."""
    if not isinstance(choice, dict):
        return Markup("")
    rows = []
    for name in ("coverage", "random", "longest"):
        one = choice.get(name) or {}
        cells = [f"{one.get('num_rows', 0):,}", f"{one.get('num_tokens', 0):,}"]
        cells += [number(one.get(key)) for key in ("nearest_similarity", "vocabulary_frac", "label_entropy_frac")]
        rows.append([join(f"<b>{name}</b> (used)" if name == "coverage" else name), *map(esc, cells)])
    head = ["chosen by", "rows", "tokens", "likeness of the rest", "words covered", "evenness of labels"]
    said = (
        f"{choice.get('budget_tokens', 0):,} tokens asked for. Likeness: mean cosine of a row left out to the nearest "
        "chosen one. Words: share of all words in prompts. Evenness: entropy of labels, 1 at most."
    )
    return join(
        f'<h3>Chosen for the token budget</h3><p class="note">{esc(said)}</p>', table(head, rows, numeric=range(1, 6))
    )


def _costs(run: RunFiles, files: DataFiles) -> Markup:
    """Tokens and predicted training dollars of the rows as they came and as they are kept."""
    if not (run.plan and files.train.num_characters):
        return Markup("")
    ratio = 1 + files.left_out.num_characters / files.train.num_characters
    rows = []
    for rung in run.plan.rungs:
        after = rung.train_s.value * rung.price_usd_per_hour / SECONDS_PER_HOUR
        cells = [count(ratio * rung.num_train_tokens), count(rung.num_train_tokens), usd(ratio * after), usd(after)]
        rows.append([esc(rung.model), *map(esc, cells), esc(usd((ratio - 1) * after))])
    head = ["model", "tokens before", "tokens after", "dollars before", "dollars after", "saved"]
    said = (
        f"Predicted. Before: with the {files.left_out.num_rows:,} dropped rows that could have been trained on, their "
        "tokens taken in proportion to characters."
    )
    return join(
        f'<h3>Tokens and cost before and after</h3><p class="note">{esc(said)}</p>',
        table(head, rows, numeric=range(1, 6)),
    )


def _lengths(files: DataFiles) -> Markup:
    sides = (files.train, files.held_out, files.left_out)
    if not any(side.prompt for side in sides):
        return Markup("")
    charts = [
        histogram(f"{name}, characters", [getattr(side, name) for side in sides], ("s0", "s2", "s3"))
        for name in ("prompt", "answer")
    ]
    tokens = [side.num_characters / CHARACTERS_PER_TOKEN for side in sides]
    names = ("train and dev", "held out", "dropped, though it could have been trained on")
    each = ", ".join(f"{name} {count(n)}" for name, n in zip(names, tokens, strict=True) if n)
    said = (
        f"Tokens, at about {CHARACTERS_PER_TOKEN} characters each: {count(sum(tokens))} before and "
        f"{count(tokens[0] + tokens[1])} after curation ({each})."
    )
    rows = [
        [esc(name), esc(what), *(esc(f"{value:,}") for value in _spread(getattr(side, what)))]
        for name, side in zip(("train and dev", "held out", "dropped"), sides, strict=True)
        if side.prompt
        for what in ("prompt", "answer")
    ]
    head = ["rows", "characters of the", "median", "nine in ten up to", "longest"]
    return join(
        f'<h3>Lengths</h3><p class="note">{esc(said)}</p>',
        _legend([key for key, side in zip(SIDE_KEYS, sides, strict=True) if side.num_rows]),
        f'<div class="pair">{"".join(charts)}</div>',
        details(esc("As a table"), table(head, rows, numeric=(2, 3, 4))),
    )


def _spread(lengths: Sequence[int]) -> tuple[int, int, int]:
    """Median, 90th percentile and longest."""
    ordered = sorted(lengths)
    return ordered[len(ordered) // 2], ordered[int(0.9 * (len(ordered) - 1))], ordered[-1]


def _labels(files: DataFiles) -> Markup:
    """Rows a label; with many labels the commonest and the rarest."""
    names = files.receipt.get("labels")
    if not names or len(names) > MAX_LABELS:
        return Markup("")
    by_label: Counter[str] = Counter()
    for side in (files.train, files.held_out):
        by_label.update(side.labels)
    ordered = sorted(((str(name)[:80]) for name in names), key=lambda name: (-by_label[name], name))
    if not by_label:
        return Markup("")
    few = len(ordered) <= MANY_LABELS
    chosen = ordered if few else [*ordered[:NUM_COMMON], *ordered[-NUM_RARE:]]
    sides = ((files.train, "s0"), (files.held_out, "s2"), (files.left_out, "s3"))
    rows = [
        (
            name,
            [(side.labels[name], cls) for side, cls in sides],
            _kept_and_dropped(by_label[name], files.left_out, name),
        )
        for name in chosen
    ]
    said = "" if few else f" The {NUM_COMMON} commonest and the {NUM_RARE} rarest are shown."
    rarest, median, commonest = (by_label[ordered[i]] for i in (-1, len(ordered) // 2, 0))
    note = f"{len(ordered)} labels, {rarest:,} to {commonest:,} kept rows, median {median:,}; + dropped ones.{said}"
    keys = [key for key, (side, _) in zip(SIDE_KEYS, sides, strict=True) if side.num_rows]
    listed = [[esc(name), *(esc(f"{n:,}") for n, _ in parts)] for name, parts, _ in rows]
    return join(
        f'<h3>Labels</h3><p class="note">{esc(note)}</p>',
        *(_legend(keys), bars("rows a label", rows)),
        details(esc("As a table"), table(["label", *(name for name, _ in SIDE_KEYS)], listed, numeric=(1, 2, 3))),
    )


def _kept_and_dropped(num_kept: int, left_out: Measured, name: str) -> str:
    return f"{num_kept:,} + {left_out.labels[name]:,}" if left_out.labels[name] else f"{num_kept:,}"
