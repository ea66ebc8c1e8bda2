"""Whether requests for the base and for adapters in one batch are answered as each is alone.

vLLM 0.32 on a CPU answers the base's requests with the adapter of the last slot once an adapter's request shares the
batch (vllm#48421); a server that does so is refused. The check asks through the engine as clients do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError
from ..engine import BASE, Ask, Engine, Sampling, Token

NUM_TOKENS = 16
NUM_TOP = 5
NUM_PROMPTS = 2
AT_ONCE = 16
# A difference in log-probability is the engine's own rounding up to NOISE, or up to this share of what an adapter does,
# but never beyond MOST.
NOISE, EFFECT_SHARE, MOST = 0.05, 0.1, 0.2
NEVER = -100.0


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences in log-probability, natural. effect: what the adapters change, the least of them."""

    num_requests: int
    largest: float
    effect: float


async def check(
    engine: Engine,
    names: Sequence[str],
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    *,
    at_once: int = AT_ONCE,
) -> Parity:
    """Ask each model alone, and then the base with as many adapters as fit into a batch of at_once requests.

    prompts: token ids; the first NUM_PROMPTS are asked. Raises: ModelError where mixing changes an answer, with the
    numbers.
    """
    prompts = prompts[:NUM_PROMPTS]
    numbers = range(len(prompts))

    async def ask(model: str, at: int) -> list[Token]:
        return await _answer(engine, model, prompts[at], stop_ids, f"parity-{model or 'base'}-{at}")

    alone = {(model, at): await ask(model, at) for model in (BASE, *names) for at in numbers}
    effects = [max(difference(alone[BASE, at], alone[name, at]) for at in numbers) for name in names]
    effect = min(effects, default=0.0)
    limit = min(MOST, max(NOISE, EFFECT_SHARE * effect))
    largest, num_requests = 0.0, len(alone)
    step = max(1, at_once // max(1, len(prompts)) - 2)
    for start in range(0, len(names), step):
        # The base at both ends: its requests are those that go wrong.
        jobs = [(model, at) for model in (BASE, *names[start : start + step], BASE) for at in numbers]
        for (model, at), answer in zip(jobs, await asyncio.gather(*(ask(*job) for job in jobs)), strict=True):
            apart = difference(alone[model, at], answer)
            largest = max(largest, apart)
            if apart > limit:
                raise ModelError(
                    f"{engine.capability.name} answers {model or 'the base'} otherwise in a batch with other adapters "
                    f"than alone: log-probabilities differ by {apart:.2f}, where {limit:.2f} is allowed and the "
                    f"adapters' own effect is {effect:.2f}"
                )
        num_requests += len(jobs)
    return Parity(num_requests, largest, effect)


async def _answer(engine: Engine, model: str, prompt: Sequence[int], stop_ids: Sequence[int], name: str) -> list[Token]:
    """A greedy answer of NUM_TOKENS; end tokens are held off, so that all stay in the batch as long."""
    sampling = Sampling(NUM_TOKENS, num_top_logprobs=NUM_TOP, logit_bias=tuple((token, NEVER) for token in stop_ids))
    tokens: list[Token] = []
    async for piece in engine.generate(Ask(name, model, tuple(prompt), sampling)):
        tokens += piece.tokens
    return tokens


def difference(a: Sequence[Token], b: Sequence[Token]) -> float:
    """Largest difference in log-probability of the same tokens, up to and with the first that differs.

    Of two first choices that differ the first's is looked up among the other's; where it is not there, the last of
    those bounds it from above.
    """
    largest = 0.0
    for one, other in zip(a, b, strict=False):
        assert one.logprob is not None and other.logprob is not None, "asked for"
        if one.id == other.id:
            largest = max(largest, abs(one.logprob - other.logprob))
            continue
        found: dict[int, Any] = dict(other.top)
        least = min(found.values(), default=other.logprob)
        return max(largest, abs(one.logprob - found.get(one.id, least)))
    return largest
