"""Training and held-out rows left out to keep to a budget of tokens or a number of rows, after the split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..messages import with_tools
from ..records import Progress
from .choose import choose
from .clean import LENGTHS_AT_A_TIME, Items, Outcome, RowLimit
from .split import sample

BYTES_PER_TOKEN = 4  # of a model not yet known


def chosen(
    train: Items, budget_tokens: int, kind: str, seed: int, limits: Sequence[RowLimit], out: Outcome,
    progress: Progress,
) -> tuple[Items, dict[str, Any]]:  # fmt: skip
    """Training rows that a token budget holds, and the choice beside a random and a longest one, for the receipt.

    Of several tokenizers the one that makes the most of a row counts. Raises: BadInput where no row fits.
    """
    tokens_N = np.zeros(len(train), np.int32)
    for start in range(0, len(train), LENGTHS_AT_A_TIME):
        examples = train[start : start + LENGTHS_AT_A_TIME]
        if limits:
            counted = [limit.lengths(examples) for limit in limits]
            # Rows that a template refuses are dropped by now.
            found = [max(sum(p) for p in pairs if not isinstance(p, str)) for pairs in zip(*counted, strict=True)]
        else:
            found = [
                sum(len(m.text.encode()) for m in with_tools(e.messages, e.tools)) // BYTES_PER_TOKEN + 1
                for e in examples
            ]
        tokens_N[start : start + len(examples)] = found
    choice = choose(train.examples, tokens_N, budget_tokens, kind=kind, seed=seed, progress=progress)
    tokens_of = np.zeros(len(out.table), np.int32)
    tokens_of[train.indices] = tokens_N
    out.table.wordings["not_chosen"] = lambda index: f"{tokens_of[index]} tokens; the budget is {budget_tokens}"
    return _only(train, choice.coverage.indices, "not_chosen", out), choice.summary()


def sampled(items: Items, limit: int | None, side: str, seed: int, is_classify: bool, out: Outcome) -> Items:
    """At most `limit` rows; the others are listed as not_sampled."""
    if limit is None or limit >= len(items):
        return items
    taken = sample(items, limit, name=f"sample {side}", seed=seed, is_classify=is_classify)
    evidence = f"curate.max_{side}_rows = {limit} of {len(items)} rows"
    return _only(items, taken, "not_sampled", out, evidence)


def _only(items: Items, taken: Any, code: str, out: Outcome, evidence: str = "") -> Items:
    """The rows taken; the others are dropped."""
    is_left = np.ones(len(items), bool)
    is_left[np.asarray(taken, np.int64)] = False
    for index in map(int, items.indices[is_left]):
        out.table.drop(index, code, evidence)
    return items.take(~is_left)
