"""Curate and plan: from files to rows, from rows to predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..data.curate import curate as curate_rows
from ..data.store import read_curated, summary, write_curated
from ..plan.devices import planned_device
from ..plan.ladder_plan import plan_ladder
from ..records import Curated, Plan, TokenCounts, to_json
from ..train.base import count_lengths, load_tokenizer
from .common import dev_rows, device, models_of, price, shape

if TYPE_CHECKING:
    from ..recipe import Run


def curate(run: Run) -> tuple[Any, Curated]:
    """Load, validate, deduplicate, split; write data/. Lengths are counted under the rung with the least context."""
    tightest, context_tokens = min(((m, shape(m).context_tokens) for m in models_of(run.config)), key=lambda p: p[1])
    tokenizer = load_tokenizer(tightest)
    curated = curate_rows(
        run.config,
        run.base_dir,
        lengths=lambda examples: count_lengths(tokenizer, examples),
        seq_len=min(run.config.train.seq_len or context_tokens, context_tokens),
        progress=run.progress,
    )
    write_curated(curated, run.folder / "data")
    return summary(curated), curated


def read(run: Run) -> Curated:
    """The curated rows of an earlier session."""
    return read_curated(run.folder / "data")


def plan(run: Run, curated: Curated) -> tuple[Any, Plan]:
    """Count tokens under each rung's tokenizer and predict memory, time and dollars."""
    shapes, counts = {}, {}
    for model in models_of(run.config):
        shapes[model] = shape(model)
        tokenizer = load_tokenizer(model)
        train, held_out = (count_lengths(tokenizer, rows) for rows in (curated.train, curated.eval))
        counts[model] = TokenCounts(
            prompt=tuple(p for p, _ in train),
            answer=tuple(a for _, a in train),
            eval_prompt=tuple(p for p, _ in held_out),
            eval_answer=tuple(a for _, a in held_out),
        )
    planned = plan_ladder(
        run.config,
        shapes,
        counts,
        planned_device(run.config.market.device, device(run)),
        price(run),
        num_dev_rows=len(dev_rows(run, curated)),
    )
    return to_json(planned), planned
