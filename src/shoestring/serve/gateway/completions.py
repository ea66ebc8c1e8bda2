"""POST /v1/completions: text or token ids, continued as they stand, without template or system prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from .answering import EventStream, Work, body_of
from .asking import find, head, logprob, new_tokens, respond, sampling_of, work_of
from .errors import ApiError
from .fields import TextRequest, read
from .text import Delta

if TYPE_CHECKING:
    from .app import Gateway

COMPLETIONS = "completions"
USUAL_TOKENS = 16  # of an answer whose max_tokens is not said, as the API has it
MAX_PROMPTS = 64


@dataclass(frozen=True)
class Completion:
    """How the answers to one request are told."""

    gateway: Gateway
    asked: TextRequest
    work: Work

    def whole(self, parts: Sequence[Sequence[Delta]]) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        choices = []
        for index, deltas in enumerate(parts):
            text = "".join(delta.text for delta in deltas)
            tokens = tuple(token for delta in deltas for token in delta.tokens)
            starts = tuple(start for delta in deltas for start in delta.starts)
            choices.append(self._choice(Delta(index, text, tokens, deltas[-1].finish, starts)))
        return {**self._head(), "choices": choices, "usage": self.work.usage()}

    async def events(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""
        base = self._head()
        if self.asked.wants_usage:
            base["usage"] = None
        async for delta in deltas:
            yield {**base, "choices": [self._choice(delta)]}
        if self.asked.wants_usage:
            yield {**base, "choices": [], "usage": self.work.usage()}

    def _choice(self, delta: Delta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish or None,
        }

    def _head(self) -> dict[str, Any]:
        return head(self.gateway, self.work, "text_completion", "cmpl-")

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        """Log-probabilities as these answers have them; text_offset counts characters of the answer."""
        if self.asked.logprobs is None:
            return None
        assert self.gateway.prompts is not None, "a model was found"
        own = self.gateway.prompts.token_bytes
        return {
            "tokens": [written(own.of(token.id)) for token in delta.tokens],
            "token_logprobs": [logprob(token.logprob) for token in delta.tokens],
            "top_logprobs": [{written(own.of(i)): logprob(value) for i, value in token.top} for token in delta.tokens],
            "text_offset": list(delta.starts),
        }


def written(raw: bytes) -> str:
    """A token as these answers name it: part of a character by its bytes, or parts of several would have one name."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def completions(request: Request) -> Response | EventStream:
    """Each prompt continued."""
    gateway: Gateway = request.app.state.gateway
    asked, _ = read(TextRequest, await body_of(request))
    registry, prompts, adapter, _ = find(gateway, asked.model)
    given = asked.prompts
    if not 1 <= len(given) <= MAX_PROMPTS:
        raise ApiError(400, f"{len(given)} prompts; give 1 to {MAX_PROMPTS} in a request.", param="prompt")
    all_ids, sampling = [], []
    for each in given:
        ids = await prompts.text(each) if isinstance(each, str) else each
        if not ids:
            raise ApiError(400, "An empty prompt has nothing to continue.", param="prompt")
        if wrong := [token for token in ids if not 0 <= token < prompts.num_ids]:
            raise ApiError(400, f"{wrong[0]} is no token; {prompts.num_ids} are known.", param="prompt")
        room = registry.engine.context_tokens - len(ids)
        wanted = asked.max_tokens or max(1, min(USUAL_TOKENS, room))
        most = new_tokens(registry.engine.context_tokens, len(ids), wanted, None, "prompt")
        all_ids.append(ids)
        sampling.append(sampling_of(gateway, asked, most, asked.logprobs, None))
    work = work_of(request, gateway, asked, COMPLETIONS, adapter, all_ids, sampling)
    told = Completion(gateway, asked, work)
    return await respond(request, gateway, work, asked.stream, told.events, told.whole)
