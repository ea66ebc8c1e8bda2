"""The curate stage: load, check, remove repeats and contradictions, hold out, and account for every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..records import Curated, DroppedRow, Example, Progress, no_progress
from .clean import (
    Item,
    Outcome,
    RowLimit,
    check_eval_repeats,
    check_labels,
    drop_leaks,
    drop_past_context,
    resolve_repeats,
    validate,
)
from .load import Loaded, load
from .sources import resolve_sources
from .split import NEAR_JACCARD, clusters_of, draw, num_near, sample

if TYPE_CHECKING:
    from ..config import RunConfig

MIN_ROWS = 20  # below this neither training nor a score means anything
EVAL_FRAC, EVAL_MIN, EVAL_MAX, EVAL_MAX_FRAC = 0.1, 100, 1000, 0.3
DEV_FRAC, DEV_MIN, DEV_MAX, DEV_MAX_FRAC = 0.05, 32, 256, 0.2


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
    kind, rules, seed = config.task.kind, config.curate, config.seed
    is_classify = kind == "classify"
    out = Outcome()
    resolve_sources([*config.data.train, *config.data.eval], base_dir)  # every missing file in one message
    loaded = load(config.data.train, config.data.fields, config.data.system, base_dir, progress)
    loaded_eval = None
    if config.data.eval:
        loaded_eval = load(config.data.eval, config.data.fields, config.data.system, base_dir, progress)
    for part in (loaded, loaded_eval):
        if part is not None:
            out.dropped += part.dropped
            out.faults += part.faults
            out.notes += part.notes

    train = validate(_items(loaded), kind, out, progress)
    train = resolve_repeats(train, kind, rules.drop_duplicates, rules.drop_contradictions, out)
    held_out: list[Item] = []
    if loaded_eval is not None:
        held_out = check_eval_repeats(validate(_items(loaded_eval), kind, out, progress), kind, out)
        train = drop_leaks(train, held_out, out)
    train, held_out = drop_past_context(train, limits, out), drop_past_context(held_out, limits, out)
    _refuse_too_few(train, held_out if loaded_eval is not None else None, config, out)

    close = num_near(train, held_out, progress) if held_out else 0
    if close:
        out.notes.append(
            f"{close} of {len(held_out)} held-out rows have a near-duplicate among the training rows "
            f"(word overlap {NEAR_JACCARD} or more); on quite new text the score may be lower"
        )
    clusters, notes = clusters_of(train, progress)
    out.notes += notes
    if loaded_eval is None:
        wanted = _eval_size(len(train), rules.eval_rows)
        taken = draw(train, clusters, wanted, name="eval", seed=seed, is_classify=is_classify)
        held_out = [train[i] for i in sorted(taken)]
        train, clusters = _without(train, clusters, taken)
        num_rows = len(held_out) + len(train)
        out.notes.append(f"{len(held_out)} of {num_rows} rows held out for the score, alike prompts on one side")
        if not held_out:
            raise DataError(
                f"no row could be held out: the {len(train)} rows are too much alike to separate; "
                "give held-out rows under data.eval"
            )
    long = {i for i, item in enumerate(train) if item.past_seq_len}
    for i in sorted(long):
        out.drop(train[i], "too_long", train[i].past_seq_len)
    train, clusters = _without(train, clusters, long)
    _refuse_too_few(train, None, config, out)
    taken = draw(train, clusters, _dev_size(len(train)), name="dev", seed=seed, is_classify=is_classify)
    dev = [train[i] for i in sorted(taken)]
    train, _ = _without(train, clusters, taken)
    train = _sampled(train, rules.max_train_rows, "train", seed, is_classify, out)
    held_out = _sampled(held_out, rules.max_eval_rows, "eval", seed, is_classify, out)
    labels = check_labels([*train, *dev], held_out, out) if is_classify else None
    return _account(loaded, loaded_eval, train, dev, held_out, labels, out)


def _items(loaded: Loaded) -> list[Item]:
    return [Item(example, row) for example, row in zip(loaded.examples, loaded.rows, strict=True)]


def _without(train: list[Item], clusters: list[list[int]], taken: set[int]) -> tuple[list[Item], list[list[int]]]:
    """The rows not taken, and their clusters under the new row numbers."""
    kept = [i for i in range(len(train)) if i not in taken]
    new_number = {old: new for new, old in enumerate(kept)}
    rest = [[new_number[i] for i in cluster if i in new_number] for cluster in clusters]
    return [train[i] for i in kept], [cluster for cluster in rest if cluster]


def _eval_size(num_rows: int, asked: int | None) -> int:
    if asked is not None:
        if num_rows - asked < MIN_ROWS:
            raise DataError(
                f"curate.eval_rows = {asked} leaves {num_rows - asked} of {num_rows} rows for training, "
                f"at least {MIN_ROWS} are needed; ask for fewer or add rows"
            )
        return asked
    return int(min(max(EVAL_FRAC * num_rows, EVAL_MIN), EVAL_MAX, EVAL_MAX_FRAC * num_rows))


def _dev_size(num_rows: int) -> int:
    return int(min(max(DEV_FRAC * num_rows, DEV_MIN), DEV_MAX, DEV_MAX_FRAC * num_rows))


def _sampled(items: list[Item], limit: int | None, side: str, seed: int, is_classify: bool, out: Outcome) -> list[Item]:
    """At most `limit` rows; the others are listed as not_sampled."""
    if limit is None or limit >= len(items):
        return items
    chosen = sample(items, limit, name=f"sample {side}", seed=seed, is_classify=is_classify)
    for index, item in enumerate(items):
        if index not in chosen:
            out.drop(item, "not_sampled", f"curate.max_{side}_rows = {limit} of {len(items)} rows")
    return [item for index, item in enumerate(items) if index in chosen]


def _refuse_too_few(train: list[Item], held_out: list[Item] | None, config: RunConfig, out: Outcome) -> None:
    reasons = Counter(row.code for row in out.dropped)
    shown = ", ".join(f"{n} {code}" for code, n in reasons.most_common(6)) or "none"
    for what, items, key in (("training", train, "data.train"), ("held-out", held_out, "data.eval")):
        if items is None or len(items) >= MIN_ROWS:
            continue
        advice = "add rows, or mend those dropped"
        if reasons["contradiction"] > len(items):
            advice += "; if several answers to one prompt are right, set curate.drop_contradictions: false"
        if reasons["answer_not_json"] > len(items):
            advice += "; task.kind: extract expects JSON answers, choose another kind if they are text"
        if reasons["leak_into_eval"] > len(items):
            advice = "data.train and data.eval hold the same prompts; give rows for data.eval that are not trained on"
        if reasons["too_long"] > len(items):
            advice += "; raise train.seq_len, or choose models with a longer context"
        where = ", ".join(getattr(config.data, key.partition(".")[2]))
        raise DataError(
            f"{where}: {len(items)} usable {what} rows remain, at least {MIN_ROWS} are needed "
            f"(dropped: {shown}); {advice}"
        )


def _account(
    loaded: Loaded, loaded_eval: Loaded | None, train: Sequence[Item], dev: Sequence[Item], held_out: Sequence[Item],
    labels: tuple[str, ...] | None, out: Outcome,
) -> Curated:  # fmt: skip
    """The result, with every source row counted once."""
    parts = [part for part in (loaded, loaded_eval) if part is not None]
    counts = {
        "rows_in": sum(part.num_rows for part in parts),
        "rows_expanded": sum(part.num_expanded for part in parts),  # further answers of conversations
        "rows_train": len(train),
        "rows_dev": len(dev),
        "rows_eval": len(held_out),
        "dropped": len(out.dropped),
    }
    kept = counts["rows_train"] + counts["rows_dev"] + counts["rows_eval"]
    assert counts["rows_in"] + counts["rows_expanded"] == kept + counts["dropped"], f"rows do not add up: {counts}"
    if counts["rows_expanded"]:
        more = counts["rows_expanded"]
        out.notes.append(f"{more} more examples than rows: each assistant turn of a conversation is one")

    def examples(items: Sequence[Item]) -> tuple[Example, ...]:
        return tuple(item.example for item in items)

    def place(record: Any) -> tuple[str, int]:
        return record.source, record.line

    dropped: list[DroppedRow] = sorted(out.dropped, key=place)
    return Curated(
        examples(train), examples(dev), examples(held_out), tuple(dropped), tuple(sorted(out.faults, key=place)),
        counts, labels, tuple(out.notes),
    )  # fmt: skip
