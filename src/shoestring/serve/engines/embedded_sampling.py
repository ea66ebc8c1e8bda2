"""How the embedded engine chooses tokens: greedy for all rows at once, else row by row.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import collections
import json
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

from ...errors import BadInput, require
from ..engine import Sampling, Token

# Blanks that JSON allows between its parts: so many at most, or a model may write nothing else until its limit.
BLANKS = r"[ \n\t]{0,24}"


class Grammars:
    """Constrains answers to JSON schemas; the tokenizer's table is made at the first one and kept."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], num_ids: int) -> None:
        self.tokenizer, self.stop_ids, self.num_ids = tokenizer, list(stop_ids), num_ids
        self.table: Any = None
        self.lock = threading.Lock()

    def matcher(self, schema: str) -> Any:
        """A new llguidance.LLMatcher. Raises: BadInput for a schema it cannot keep to, MissingDependency."""
        llguidance = require("llguidance", extra="serve", purpose="an answer that keeps to a JSON schema")
        with self.lock:
            if self.table is None:
                tables = require("llguidance.hf", extra="serve", purpose="an answer that keeps to a JSON schema")
                known = len(self.tokenizer)
                # Rows of the head beyond the tokenizer's are no tokens.
                self.table = tables.from_tokenizer(
                    self.tokenizer, n_vocab=max(known, self.num_ids), eos_token=self.stop_ids
                )
        try:
            wanted = json.loads(schema)
            if wanted == {}:
                wanted = {"type": "object"}
            grammar = llguidance.LLMatcher.grammar_from_json_schema(wanted, overrides={"whitespace_pattern": BLANKS})
        except ValueError as error:
            raise BadInput(f"the JSON schema cannot be read: {error}") from error
        matcher = llguidance.LLMatcher(self.table, grammar)
        if matcher.is_error():
            raise BadInput(f"the JSON schema cannot be kept to: {matcher.get_error()}")
        return matcher


class Choice:
    """The state of one row's sampling."""

    def __init__(self, sampling: Sampling, matcher: Any, stop_ids: frozenset[int]) -> None:
        self.sampling, self.matcher, self.stop_ids = sampling, matcher, stop_ids
        self.counts: collections.Counter[int] = collections.Counter()
        self.generator: Any = None
        self.biases: tuple[Any, Any] | None = None  # ids, and what is added to each

    def choose(self, logits_V: Any) -> Token:
        """The next token. Logits are as the model gives them."""
        import torch

        sampling = self.sampling
        logits_V = logits_V.float()
        raw_V = logits_V
        if sampling.logit_bias:
            if self.biases is None:
                known = [(token, bias) for token, bias in sampling.logit_bias if 0 <= token < len(logits_V)]
                ids = torch.tensor([token for token, _ in known], dtype=torch.long, device=logits_V.device)
                self.biases = ids, torch.tensor([bias for _, bias in known], device=logits_V.device)
            logits_V = logits_V.index_add(0, *self.biases)
        if self.counts and (sampling.presence_penalty or sampling.frequency_penalty):
            ids = torch.tensor(list(self.counts), device=logits_V.device)
            counts = torch.tensor(list(self.counts.values()), dtype=logits_V.dtype, device=logits_V.device)
            logits_V = logits_V.index_add(0, ids, -(sampling.presence_penalty + sampling.frequency_penalty * counts))
        if self.matcher is not None:
            allowed_V = self._allowed(len(logits_V))
            if not allowed_V.any():
                raise BadInput(
                    f"the JSON schema cannot be kept to: {self.matcher.get_error() or 'no token may follow'}"
                )
            logits_V = logits_V.masked_fill(~allowed_V.to(logits_V.device), float("-inf"))
        chosen = int(logits_V.argmax()) if sampling.temperature == 0 else self._drawn(logits_V)
        if self.matcher is not None and chosen not in self.stop_ids and not self.matcher.consume_token(chosen):
            raise BadInput(f"the JSON schema cannot be kept to: {self.matcher.get_error() or 'no token may follow'}")
        self.counts[chosen] += 1
        if sampling.num_top_logprobs is None:
            return Token(chosen)
        logs_V = raw_V.log_softmax(-1)
        top: tuple[tuple[int, float], ...] = ()
        if sampling.num_top_logprobs:
            values, ids = logs_V.topk(min(sampling.num_top_logprobs, len(logs_V)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Token(chosen, float(logs_V[chosen]), top)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow what the schema has."""
        return self.matcher is not None and bool(self.matcher.is_stopped())

    def _allowed(self, num_ids: int) -> Any:
        import numpy as np
        import torch

        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:num_ids].astype(bool)
        return torch.from_numpy(np.pad(allowed, (0, num_ids - len(allowed))))

    def _drawn(self, logits_V: Any) -> int:
        import torch

        if self.generator is None:
            seed = self.sampling.seed
            self.generator = torch.Generator(device=logits_V.device)
            self.generator.manual_seed(int.from_bytes(os.urandom(7), "big") if seed is None else seed & (2**63 - 1))
        # Less the largest first: a temperature near 0 must not make infinities of all of them.
        odds_V = ((logits_V - logits_V.max()) / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            values, ids = odds_V.sort(descending=True, stable=True)
            # Those before the mass is reached, and the one that reaches it.
            values = values.masked_fill(values.cumsum(-1) - values >= self.sampling.top_p, 0)
            values[0] = values[0].clamp(min=torch.finfo(values.dtype).tiny)
            return int(ids[torch.multinomial(values, 1, generator=self.generator)])
        return int(torch.multinomial(odds_V, 1, generator=self.generator))


def make_choice(sampling: Sampling, grammars: Grammars, stop_ids: frozenset[int]) -> Choice | None:
    """None where the most likely token, and no more, is wanted. Raises: BadInput, MissingDependency."""
    is_plain = (
        sampling.temperature == 0
        and sampling.num_top_logprobs is None
        and sampling.schema is None
        and not (sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias)
    )
    if is_plain:
        return None
    matcher = grammars.matcher(sampling.schema) if sampling.schema is not None else None
    return Choice(sampling, matcher, stop_ids)


def greedy(logits_BV: Any) -> tuple[list[int], list[bool]]:
    """The most likely token of each row, and whether its logit is finite."""
    ids_B = logits_BV.float().argmax(-1, keepdim=True)
    values = logits_BV.gather(1, ids_B).flatten().tolist()
    return ids_B.flatten().tolist(), [math.isfinite(value) for value in values]
