"""Prompts as token ids: written by the template that training and evaluation used, in a thread beside the answers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from ...messages import Message, Prompt, split_tools
from ...train.tokens import encode_prompt
from ...train.tools import TemplateRefused, render, shows_names
from ..registry import Served
from .conversation import call_opening
from .errors import ApiError
from .text import Detokeniser, TokenBytes

MAX_WAITING = 256

T = TypeVar("T")


class Prompts:
    """A tokenizer for each side: writing prompts has a thread of its own, which shares nothing with reading answers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._writing = copy.deepcopy(tokenizer)
        self.num_waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self.token_bytes = TokenBytes(tokenizer)
        self.num_ids = len(tokenizer)

    async def chat(self, prompt: Prompt, served: Served | None, room: int, *, begins_call: bool) -> list[int]:
        """Ids of a conversation up to where the answer begins. served: whose system prompt and passages it gets.

        room: tokens for passages at most; begins_call: the answer is a call, and what the template writes before its
        JSON is there already. Raises: ApiError 400 where the template refuses.
        """

        def ids() -> list[int]:
            own = served.prompt(prompt, self._count, room) if served else prompt
            if not begins_call:
                return encode_prompt(self._writing, own)
            tools, turns = split_tools(own)
            text = render(self._writing, turns, tools, generation_prompt=True) + self.call_opening
            found: list[int] = self._writing(text, add_special_tokens=False).input_ids
            return found

        try:
            return await self._beside(ids)
        except TemplateRefused as error:
            raise ApiError(400, f"These messages have no form here: {error}.", param="messages") from None

    async def text(self, text: str) -> list[int]:
        """Ids of text as it stands, with the special tokens that the tokenizer puts around any."""
        return await self._beside(lambda: list(self._writing(text).input_ids))

    async def plain(self, text: str) -> list[int]:
        """Ids of text within a conversation."""
        return await self._beside(lambda: list(self._writing(text, add_special_tokens=False).input_ids))

    def detokeniser(self) -> Detokeniser:
        """For one answer."""
        return Detokeniser(self.tokenizer)

    @cached_property
    def call_opening(self) -> str:
        """What comes before the JSON of a call."""
        return call_opening(self._writing)

    @cached_property
    def shows_names(self) -> bool:
        """Whether the template writes the names of messages' authors."""
        return shows_names(self._writing)

    def _count(self, messages: Sequence[Message]) -> int:
        return len(encode_prompt(self._writing, messages))

    async def _beside(self, make: Callable[[], T]) -> T:
        if self.num_waiting >= MAX_WAITING:
            raise ApiError(429, f"{self.num_waiting} prompts wait to be read.", code="queue_full", retry_after_s=1.0)
        self.num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make)
        finally:
            self.num_waiting -= 1

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
