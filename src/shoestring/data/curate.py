"""The curate stage: read, check, remove repeats and contradictions, hold out, and account for every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, MissingDependency
from ..records import Curated, DroppedRow, Fault, Progress, example_from_json, example_to_json, no_progress
from .budget import chosen, sampled
from .clean import (
    Items,
    Outcome,
    RowLimit,
    check_eval_repeats,
    check_labels,
    drop_leaks,
    drop_past_context,
    duplicate_evidence,
    note_hidden_tools,
    resolve_repeats,
)
from .decisions import apply_decisions, review_rows
from .engine import EngineName, Examples, Local, Ray, Table, engine_named, give_back
from .language import language_mix
from .load import scan
from .near_repeats import resolve_near
from .review import ReviewRow, write_review
from .rows import NAMES, NUMBER_OF, Settings
from .sizes import MIN_ROWS, dev_size, eval_size
from .sources import is_curated, resolve_sources
from .split import NEAR_JACCARD, Apart, clusters_of, draw, near_items
from .store import REVIEW, SIDES, Writer, dropped_line, fault_line, marked_apart, refuse_changed, summary_of
from .undesired import placed
from .wrong import wrong_rows

if TYPE_CHECKING:
    from ..config import RunConfig

MAX_JUDGED_ROWS = 200_000  # minutes on one core
TRAIN, DEV, EVAL, DROPPED = range(4)


@dataclass(frozen=True, slots=True)
class Decided:
    """Every record of a table on one side. sides: one of TRAIN, DEV, EVAL, DROPPED a record."""

    table: Table
    sides: Any
    faults: list[Fault]
    notes: list[str]
    labels: tuple[str, ...] | None
    measures: dict[str, Any]
    review: Sequence[ReviewRow] = ()

    def counts(self) -> dict[str, int]:
        """rows_in + rows_expanded = rows_train + rows_dev + rows_eval + dropped."""
        num_train, num_dev, num_eval, num_dropped = np.bincount(self.sides, minlength=4).tolist()
        return {
            "rows_in": self.table.num_rows,
            "rows_expanded": len(self.table) - self.table.num_rows,  # further answers of conversations
            "rows_train": num_train,
            "rows_dev": num_dev,
            "rows_eval": num_eval,
            "dropped": num_dropped,
        }

    def summary(self) -> dict[str, Any]:
        """As store.summary."""
        dropped = _dropped(self.table)
        return summary_of(self.counts(), self.labels, self.notes, dropped, self.faults, self.measures)

    def evidence(self, index: int) -> str:
        """Why a record was dropped, in words."""
        worded = self.table.wordings.get(self.table.code_of(index))
        return self.table.evidence.get(index) or (worded(index) if worded else duplicate_evidence(self.table, index))

    def partner_line(self, index: int) -> int | None:
        """Line of the record a dropped one repeats or contradicts."""
        partner = int(self.table.partner[index])
        return int(self.table.line[partner]) if partner >= 0 else None


def _dropped(table: Table) -> Counter[str]:
    """Number of dropped records by code."""
    numbers = np.bincount(table.code, minlength=len(NAMES)).tolist()
    return Counter({name: number for name, number in zip(NAMES, numbers, strict=True) if name and number})


def curate(
    config: RunConfig,
    base_dir: Path,
    *,
    limits: Sequence[RowLimit] = (),
    progress: Progress = no_progress,
) -> Curated:
    """Train, dev and held-out rows of a run; every source row is in one of them or in `dropped`.

    limits: what a row must keep to, one for each model; rows held out keep to the context alone, so that
    train.seq_len does not make the score easier.
    Raises: DataError when a source cannot be used or too few rows remain.
    """
    with Table() as table, engine_named("local") as engine:
        decided = decide(config, base_dir, table, engine, limits, progress)
        return to_curated(decided)


def curate_into(
    folder: Path, config: RunConfig, base_dir: Path, *, engine: EngineName = "local", num_workers: int | None = None,
    limits: Sequence[RowLimit] = (), may_be_few: bool = False, progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """As curate, into the files of a folder; returns the summary.

    Decisions in the folder's review.csv are carried out; a new one is written. may_be_few: too few rows to hold
    any out are all left in train.jsonl, else refused. Raises: DataError, RunFolderError; BadInput where files of the
    folder were changed by hand.
    """
    refuse_changed(folder)
    with Writer(folder) as writer, Table(folder) as table, engine_named(engine, num_workers) as working:
        review = folder / REVIEW
        decided = decide(config, base_dir, table, working, limits, progress, review, may_be_few)
        summary = decided.summary()
        write_decided(decided, writer, progress)
        write_review(review, decided.review)
        writer.commit(summary)
    return summary


def decide(
    config: RunConfig, base_dir: Path, table: Table, engine: Local | Ray, limits: Sequence[RowLimit],
    progress: Progress, review: Path | None = None, may_be_few: bool = False,
) -> Decided:  # fmt: skip
    """Fill the table from the run's sources and put every record on one side.

    review: a review.csv with decisions. may_be_few: as in curate_into. Raises: DataError.
    """
    kind, rules, seed, data = config.task.kind, config.curate, config.seed, config.data
    is_classify = kind == "classify"
    out = Outcome(table)
    resolve_sources([*data.train, *data.eval], base_dir)  # every missing file in one message
    learns_undesired = config.train.objective == "kto"
    settings = Settings(data.fields, data.system, kind, rules.redact, learns_undesired)
    for sources, is_held_out in ((data.train, False), (data.eval, True)):
        if sources:
            seen = scan(sources, base_dir, settings, table, engine, progress, is_held_out=is_held_out)
            out.faults += seen.faults
            out.notes += seen.notes
    if not data.eval:
        for name in filter(lambda name: is_curated(base_dir / name), data.train):
            out.notes.append(f"{name}: its eval rows are not used; to score on them name it under data.eval too")
    engine.stop()
    table.close()

    reviewed = apply_decisions(review, kind, out) if review else {}
    resolve_repeats(kind, rules.drop_duplicates, rules.contradictions, out, progress)
    resolve_near(kind, rules.drop_duplicates, rules.contradictions, out, progress)
    give_back()
    if data.eval:
        check_eval_repeats(kind, out)
        drop_leaks(out)
    for is_held_out in (False, True):
        drop_past_context(is_held_out, limits, out)
    note_hidden_tools(limits, out)
    suspects = _suspects(kind, seed, out, progress)
    measures = _languages(out)
    train, held_out = (Items(table, table.kept(side)) for side in (False, True))
    is_few = may_be_few and len(train) < 2 * MIN_ROWS
    if is_few:
        few = "1 row is" if len(train) == 1 else f"{len(train)} rows are"
        out.notes.append(f"{few} too few to hold any out; at least {2 * MIN_ROWS} are needed for that")
    else:
        _refuse_too_few(train, held_out if data.eval else None, config, out)

    dev = train.take([])
    apart = Apart()
    if is_few:
        train = train.take(~_is_long(train, out))
    else:
        train, dev, held_out, apart = _split(train, held_out, config, out, progress)
        give_back()
    if rules.max_train_tokens is not None and train:
        train, measures["choice"] = chosen(train, rules.max_train_tokens, kind, seed, limits, out, progress)
        if not may_be_few:
            _refuse_too_few(train, None, config, out)
    train = sampled(train, rules.max_train_rows, "train", seed, is_classify, out)
    held_out = sampled(held_out, rules.max_eval_rows, "eval", seed, is_classify, out)
    if held_out:
        measures["near_eval_ids"] = _near_eval_ids(train + dev, held_out, None if data.eval else apart, out, progress)
    labels = check_labels(train + dev, held_out, out) if is_classify else None
    if learns_undesired:
        marked = placed(train, dev, held_out, limits, seed, bool(data.eval), out)
        train, dev, held_out = train + marked.train, dev + marked.dev, held_out + marked.held_out
        told = f"{len(marked.train):,} to learn from, {len(marked.dev):,} for dev, {len(marked.held_out):,} held out"
        out.notes.append(f"undesired answers: {told}")
    if len(table) > table.num_rows:
        more = len(table) - table.num_rows
        out.notes.append(f"{more:,} more examples than rows: each assistant turn of a conversation is one")

    sides = np.full(len(table), DROPPED, np.int8)
    for side, items in ((TRAIN, train), (DEV, dev), (EVAL, held_out)):
        sides[items.indices] = side
    assert ((sides == DROPPED) == (table.code != 0)).all(), "every row is kept, or dropped for a reason"
    for index, code in sorted(table.yielded.items()):
        out.fault(index, "restored", f"{REVIEW} keeps it; it would be dropped as {code}", "safe")
    order = {name: number for number, name in enumerate(table.sources)}
    faults = sorted(out.faults, key=lambda f: (order[f.source], f.line))
    rows = review_rows(suspects, reviewed, out)
    return Decided(table, sides, faults, out.notes, labels, measures, rows)


def _suspects(kind: str, seed: int, out: Outcome, progress: Progress) -> list[tuple[int, str, float, str]]:
    """Records to look at (record, code, score, evidence): contradictions that stay, and what is probably wrong."""
    found = [(index, code, 1.0, evidence) for index, code, evidence in out.open_questions]
    kept = np.flatnonzero(out.table.code == 0)
    if len(kept) > MAX_JUDGED_ROWS:
        out.notes.append(f"wrong rows were looked for among {MAX_JUDGED_ROWS:,} of {len(kept):,} rows, drawn by hash")
        kept = np.sort(kept[np.argsort(out.table.keys[kept, 3], kind="stable")[:MAX_JUDGED_ROWS]])
    judged = kept.tolist()
    try:
        suspects = wrong_rows(Examples(out.table, judged), kind=kind, seed=seed, progress=progress)
    except MissingDependency as error:
        out.notes.append(f"wrong rows were not looked for: {error}")
        return found
    if suspects:
        out.notes.append(f"{len(suspects):,} rows look wrong; {REVIEW} holds them, the most suspect first")
    return found + [(judged[s.index], s.code, s.score, s.evidence) for s in suspects]


def _languages(out: Outcome) -> dict[str, Any]:
    """Report rows in another language than most; rows by language for the receipt."""
    table = out.table
    kept = np.flatnonzero(table.code == 0)
    faults, counts = language_mix(Examples(table, kept), table.languages[kept])
    out.faults += faults
    return {"languages": counts}


def _split(
    train: Items, held_out: Items, config: RunConfig, out: Outcome, progress: Progress
) -> tuple[Items, Items, Items, Apart]:
    """Training, dev and held-out records; held_out as given under data.eval, else drawn here. Raises: DataError."""
    seed, is_classify = config.seed, config.task.kind == "classify"
    cluster_N, apart, notes = clusters_of(train, progress)
    out.notes += notes

    def without(is_gone: Any) -> tuple[Items, Any]:
        return train.take(~is_gone), cluster_N[~is_gone]

    def drawn(num_rows: int, name: str) -> Any:
        is_taken = np.zeros(len(train), bool)
        is_taken[draw(train, cluster_N, num_rows, name=name, seed=seed, is_classify=is_classify)] = True
        return is_taken

    if not config.data.eval:
        is_taken = drawn(eval_size(len(train), config.curate.eval_rows), "eval")
        held_out = train.take(is_taken)
        train, cluster_N = without(is_taken)
        num_rows = len(held_out) + len(train)
        out.notes.append(f"{len(held_out):,} of {num_rows:,} rows held out for the score, alike prompts on one side")
        if not held_out:
            raise DataError(
                f"no row could be held out: the {len(train)} rows are too much alike to separate; "
                "give held-out rows under data.eval"
            )
    train, cluster_N = without(_is_long(train, out))
    _refuse_too_few(train, None, config, out)
    is_taken = drawn(dev_size(len(train)), "dev")
    return train.take(~is_taken), train.take(is_taken), held_out, apart


def _near_eval_ids(seen: Items, held_out: Items, apart: Apart | None, out: Outcome, progress: Progress) -> list[str]:
    """Ids of held-out rows near to training or dev rows. apart: what is known of rows that were split here."""
    if apart is None:
        near = near_items(seen, held_out, progress)
    else:
        near = apart.near_to(seen.indices, held_out.indices)
    if len(near):
        out.notes.append(
            f"{len(near):,} of {len(held_out):,} held-out rows have a near-duplicate among the training rows "
            f"(word overlap {NEAR_JACCARD} or more); on quite new text the score may be lower, so it is also given on "
            "the others"
        )
    return sorted(f"{id:016x}" for id in Items(out.table, near).ids.tolist())


def _is_long(train: Items, out: Outcome) -> Any:
    """Drop, and mark, the rows past train.seq_len; they could only have been held out."""
    is_long = np.isin(train.indices, list(out.past_seq_len))
    for index in train.indices[is_long].tolist():
        out.drop(index, "too_long", out.past_seq_len[index])
    return is_long


def to_curated(decided: Decided) -> Curated:
    """The result in memory."""
    table = decided.table
    kept: tuple[list[Any], ...] = ([], [], [])
    dropped: list[DroppedRow] = []
    for index, (text, row) in enumerate(table.lines()):
        side = decided.sides[index]
        if side != DROPPED:
            kept[side].append(table.corrected.get(index) or example_from_json(json.loads(text)))
            continue
        source, line = table.place(index)
        evidence, partner_line = decided.evidence(index), decided.partner_line(index)
        code, example_id = table.code_of(index), _id_in(text)
        dropped.append(DroppedRow(json.loads(row), source, line, code, evidence, partner_line, example_id))
    (train, dev, held_out), undesired = marked_apart(kept)
    return Curated(
        train, dev, held_out, tuple(dropped), tuple(decided.faults), decided.counts(), decided.labels,
        tuple(decided.notes), decided.measures, undesired,
    )  # fmt: skip


def _id_in(example: str | bytes) -> str:
    return str(json.loads(example)["id"]) if example else ""


def write_decided(decided: Decided, writer: Writer, progress: Progress) -> None:
    """The result as lines, copied from the table in one pass."""
    table = decided.table
    names = [f"{side}.jsonl" for side in SIDES]
    sides = decided.sides.tolist()
    for index, (text, row) in enumerate(table.lines()):
        if index % 10_000 == 0:
            progress("writing rows", index, len(table))
        side = sides[index]
        if side != DROPPED:
            if index in table.corrected:
                corrected = json.dumps(example_to_json(table.corrected[index]), ensure_ascii=False)
                text = corrected.encode("utf-8", "surrogatepass")
            writer.line(names[side], text)
            continue
        place, code = table.place(index), table.code_of(index)
        evidence, partner_line = decided.evidence(index), decided.partner_line(index)
        writer.line(
            "dropped.jsonl",
            dropped_line(row.decode("utf-8", "surrogatepass"), *place, code, evidence, partner_line, _id_in(text)),
        )
    for fault in decided.faults:
        writer.line("faults.jsonl", fault_line(fault))


def _refuse_too_few(train: Items, held_out: Items | None, config: RunConfig, out: Outcome) -> None:
    reasons = _dropped(out.table)
    shown = ", ".join(f"{n} {code}" for code, n in reasons.most_common(6)) or "none"
    for what, items, key in (("training", train, "data.train"), ("held-out", held_out, "data.eval")):
        if items is None or len(items) >= MIN_ROWS:
            continue
        advice = "add rows, or mend those dropped"
        if reasons["contradiction"] > len(items):
            advice += "; if several answers to one prompt are right, set curate.contradictions: keep"
        if reasons["answer_not_json"] > len(items):
            advice += "; task.kind: extract expects JSON answers, choose another kind if they are text"
        if reasons["leak_into_eval"] > len(items):
            advice = "data.train and data.eval hold the same prompts; give rows for data.eval that are not trained on"
        if reasons["not_chosen"] > len(items):
            advice = "raise curate.max_train_tokens"
        if reasons["template_refuses"] > len(items):
            first = int(np.flatnonzero(out.table.code == NUMBER_OF["template_refuses"])[0])
            advice += f"; {out.table.evidence[first]}"
        if reasons["too_long"] > len(items):
            advice += "; raise train.seq_len, or choose models with a longer context"
        where = ", ".join(getattr(config.data, key.partition(".")[2]))
        raise DataError(
            f"{where}: {len(items)} usable {what} rows remain, at least {MIN_ROWS} are needed "
            f"(dropped: {shown}); {advice}"
        )
