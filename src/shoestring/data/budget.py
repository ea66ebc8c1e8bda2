"""Training and held-out rows left out to keep to a budget of tokens or a number of rows, after the split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..records import Progress
from .choose import choose
from .clean import Item, Outcome, RowLimit
from .engine import Examples
from .split import sample

BYTES_PER_TOKEN = 4  # of a model not yet known


def chosen(
    train: list[Item], budget_tokens: int, kind: str, seed: int, limits: Sequence[RowLimit], out: Outcome,
    progress: Progress,
) -> tuple[list[Item], dict[str, Any]]:  # fmt: skip
    """Training rows that a token budget holds, and the choice beside a random and a longest one, for the receipt.

    Of several tokenizers the one that makes the most of a row counts. Raises: BadInput where no row fits.
    """
    examples = Examples(out.table, [item.index for item in train])
    if limits:
        counted = [limit.lengths(list(examples)) for limit in limits]
        num_tokens = [max(map(sum, pairs)) for pairs in zip(*counted, strict=True)]
    else:
        num_tokens = [sum(len(m.content.encode()) for m in e.messages) // BYTES_PER_TOKEN + 1 for e in examples]
    choice = choose(examples, num_tokens, budget_tokens, kind=kind, seed=seed, progress=progress)
    taken = set(choice.coverage.indices)
    for position, item in enumerate(train):
        if position not in taken:
            out.drop(item.index, "not_chosen", f"{num_tokens[position]} tokens; the budget is {budget_tokens}")
    return [item for position, item in enumerate(train) if position in taken], choice.summary()


def sampled(items: list[Item], limit: int | None, side: str, seed: int, is_classify: bool, out: Outcome) -> list[Item]:
    """At most `limit` rows; the others are listed as not_sampled."""
    if limit is None or limit >= len(items):
        return items
    taken = sample(items, limit, name=f"sample {side}", seed=seed, is_classify=is_classify)
    for index, item in enumerate(items):
        if index not in taken:
            out.drop(item.index, "not_sampled", f"curate.max_{side}_rows = {limit} of {len(items)} rows")
    return [item for index, item in enumerate(items) if index in taken]
