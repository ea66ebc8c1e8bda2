"""The embedded engine's thread: requests come and go at token boundaries, and every pass serves all of them.

A pass has the next token of each row that is answered, and as many tokens of prompts that wait to be read as keep those
rows from standing still. Rows lie in the store without gaps: first those that are answered, then those that are read.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from ...errors import BadInput, ModelError, ShoestringError
from ..engine import EngineDown, Piece, Token
from .embedded_cache import NoRoom, PrefixTree, Store, common_tokens
from .embedded_lora import Adapter, Slots
from .embedded_sampling import greedy
from .embedded_steps import Forward, Passes, Row

# A request waits for another that reads the same beginning, where that saves so many tokens.
WORTH_WAITING_TOKENS = 32

# After each pass: where there is one core, requests come in and answers go out between two of them.
_yield = getattr(os, "sched_yield", lambda: None)

Deliver = Callable[[list[tuple[Any, Piece | ShoestringError]]], None]


class Loop(threading.Thread):
    """Answers rows until told to stop. `submit`, `cancel`, `call` and `stop` may be called from any thread."""

    def __init__(
        self,
        model: Forward,
        store: Store,
        tree: PrefixTree,
        slots: Slots,
        *,
        stop_ids: frozenset[int],
        context_tokens: int,
        max_rows: int,
        deliver: Deliver,
        num_threads: int,
        name: str,
    ) -> None:
        super().__init__(name="shoestring-engine", daemon=True)
        self.model, self.store, self.tree, self.slots = model, store, tree, slots
        self.stop_ids, self.context_tokens, self.max_rows = stop_ids, context_tokens, max_rows
        self.num_places = max_rows  # fewer after memory has run out, one more with each answer
        self.deliver, self.num_threads, self.model_name = deliver, num_threads, name
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.waiting: collections.deque[Row] = collections.deque()
        self.rows: list[Row] = []
        self.num_single = 0  # of rows, those whose prompt is read
        self.told: list[tuple[Any, Piece | ShoestringError]] = []
        self.gone: list[Adapter] = []  # dropped, of which there still are rows
        self.is_over = False
        self.fault: BaseException | None = None
        self.passes = Passes(store, slots, model.num_queries_per_key)
        self.counts = dict.fromkeys(
            ("num_prompt_tokens", "num_cached_tokens", "num_new_tokens", "num_steps", "num_preempted"), 0
        )

    # ---- from other threads ----

    def submit(self, row: Row) -> None:
        """Answer a row as soon as there is a place."""
        self.inbox.put(lambda: self.waiting.append(row))

    def cancel(self, row: Row) -> None:
        """Drop a row at the next token."""
        row.is_cancelled = True
        self.inbox.put(lambda: None)

    def call(self, function: Callable[[], None]) -> None:
        """Run between two passes."""
        self.inbox.put(function)

    async def run_between(self, function: Callable[[], None]) -> None:
        """Run between two passes and wait for it. Raises: what the function raises, EngineDown."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                function()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.call(run)
        if self.is_over:
            raise EngineDown("the engine has ended; start the server again")
        await asyncio.wrap_future(done)

    def forget(self, adapter: Adapter) -> None:
        """Between passes: nothing is kept of an adapter that is gone, once no row uses it."""
        self.gone.append(adapter)
        self._let_go()

    def stop(self) -> None:
        """End; rows on their way are told so."""

        def end() -> None:
            self.is_over = True

        self.inbox.put(end)

    # ---- the thread ----

    def run(self) -> None:
        import torch

        if self.store.held.device.type == "cpu":
            torch.set_num_threads(self.num_threads)
        try:
            with torch.inference_mode():
                while not self.is_over:
                    self._hear()
                    self._drop_cancelled()
                    if self.gone:
                        self._let_go()
                    self._admit()
                    if self.rows:
                        self._step()
                    self._tell()
                    _yield()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            self.fault = error
            raise
        finally:
            self.is_over = True
            self._end()

    def _end(self) -> None:
        reason = f"the engine has ended: {self.fault}" if self.fault else "the engine has been closed"
        while not self.inbox.empty():
            self.inbox.get()()
        for row in [*self.rows, *self.waiting]:
            self.told.append((row.sink, EngineDown(f"{reason}; start the server again")))
        self.rows, self.num_single = [], 0
        self.waiting.clear()
        self._tell()

    def _hear(self) -> None:
        idle = not self.rows and not self.waiting
        if idle and self.inbox.empty():
            self.passes.clear()  # it knows the rows of the last pass, their adapters, and the store as it was
            self.store.release()
        while idle or not self.inbox.empty():
            self.inbox.get()()
            idle = False

    def _tell(self) -> None:
        if self.told:
            self.deliver(self.told)
            self.told = []

    def _drop_cancelled(self) -> None:
        for index in range(len(self.rows) - 1, -1, -1):
            if self.rows[index].is_cancelled:
                self._remove(index)
        if any(row.is_cancelled for row in self.waiting):
            self.waiting = collections.deque(row for row in self.waiting if not row.is_cancelled)

    # ---- places ----

    def _admit(self) -> None:
        import torch

        skipped: list[Row] = []
        # Rows that come together stand in the order of their slots, as a pass has them.
        first = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.num_places - len(self.rows)))]
        first.sort(key=lambda row: self.slots.find(row.adapter))
        self.waiting.extendleft(reversed(first))
        while self.waiting and len(self.rows) < self.num_places:
            row = self.waiting.popleft()
            found = self.tree.find(row.adapter, row.ids)
            known = min(sum(num for _, num in found), len(row.ids) - 1)
            if self._is_being_read(row, known):
                skipped.append(row)
                continue
            try:
                self.store.require(len(self.rows) + 1, max(len(row.ids), *(len(r.ids) for r in self.rows), 1))
            except (NoRoom, torch.OutOfMemoryError):
                if self.rows:
                    self.waiting.appendleft(row)
                else:
                    self.told.append((row.sink, self._too_large(row)))
                break
            index, at = len(self.rows), 0
            for node, num in found:
                num = min(num, known - at)
                if num > 0:
                    self.store.write(index, at, self.tree.read(node, num))
                    at += num
            row.num_read = known
            if not row.num_new:
                row.num_cached = known
                self.counts["num_prompt_tokens"] += row.num_prompt
                self.counts["num_cached_tokens"] += known
            self.rows.append(row)
            row.slot = None if row.adapter is None else self.slots.place(row.adapter, self._uses)
        self.waiting.extendleft(reversed(skipped))

    def _let_go(self) -> None:
        for adapter in self.gone:
            if not self._uses(adapter):
                self.tree.forget(adapter)
                self.slots.forget(adapter)
        self.gone = [adapter for adapter in self.gone if self._uses(adapter)]

    def _uses(self, adapter: Adapter) -> bool:
        return any(row.adapter is adapter for row in self.rows) or any(row.adapter is adapter for row in self.waiting)

    def _is_being_read(self, row: Row, known: int) -> bool:
        """Whether a row under way reads a beginning of this one, which is then copied instead."""
        wanted = known + WORTH_WAITING_TOKENS
        return len(row.ids) > wanted and any(
            other.adapter is row.adapter and common_tokens(other.ids, row.ids) >= wanted
            for other in self.rows[self.num_single :]
        )

    def _remove(self, index: int) -> None:
        """Take a row out; others move into its place."""
        last = len(self.rows) - 1
        if index < self.num_single:
            self.num_single -= 1
            self._move(self.num_single, index)
            index = self.num_single
        self._move(last, index)
        self.rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self.store.move(source, target, self.rows[source].num_read)
            self.rows[target] = self.rows[source]

    def _preempt(self) -> None:
        """Send the youngest row back to wait: memory has run out. Raises: ModelError where it is the only one."""
        import torch

        self.tree.clear()
        self.passes.clear()
        if self.store.held.device.type == "cuda":
            torch.cuda.empty_cache()
        row = self.rows[-1]
        self._remove(len(self.rows) - 1)
        if not self.rows:
            self.told.append((row.sink, self._too_large(row)))
            return
        row.num_read = 0
        self.counts["num_preempted"] += 1
        self.num_places = len(self.rows)
        self.waiting.appendleft(row)

    def _too_large(self, row: Row) -> ModelError:
        return ModelError(
            f"{self.model_name} runs out of memory on one request of {len(row.ids)} tokens; ask for fewer max_tokens, "
            "or serve with method: qlora"
        )

    # ---- one pass ----

    def _step(self) -> None:
        import torch

        try:
            self.store.require(len(self.rows), max(len(row.ids) for row in self.rows))
            now, asked = self.passes.next(self.rows, self.num_single)
            logits_BV = self.model.forward(now)
        except (NoRoom, torch.OutOfMemoryError):
            self._preempt()
            return
        self.counts["num_steps"] += 1
        for run in now.runs:
            self.rows[run.row].num_read = run.stop
        for row in self.rows[: self.num_single]:
            row.num_read += 1
        for row in asked[now.num_single :]:
            self.num_single += 1
            self.tree.add(row.adapter, row.ids, self.store, self.num_single - 1)
        if asked:
            self._extend(asked, logits_BV)

    def _extend(self, asked: list[Row], logits_BV: Any) -> None:
        """Give each row its next token; rows that end leave."""
        tokens, finite = greedy(logits_BV)
        ended = []
        for at, row in enumerate(asked):
            try:
                if not finite[at]:
                    where = f"the adapter {row.adapter.name!r} is" if row.adapter else "its weights are"
                    raise ModelError(f"{self.model_name} gives logits that are not finite: {where} damaged")
                token = Token(tokens[at]) if row.choice is None else row.choice.choose(logits_BV[at])
                is_over = self._take(row, token)
            except (ModelError, BadInput) as error:
                self.told.append((row.sink, error))
                row.is_failed = is_over = True
            if is_over:
                ended.append(row)
        if ended:
            self._leave(ended)

    def _take(self, row: Row, token: Token) -> bool:
        """Tell of a row's next token; whether it was the last."""
        finish, has_end = "", token.id in self.stop_ids
        if has_end:
            finish = "stop"
        else:
            row.ids.append(token.id)
            row.fresh.append(token)
            self.counts["num_new_tokens"] += 1
            if row.choice is not None and row.choice.is_complete:
                finish = "stop"
            elif row.num_new >= row.ask.sampling.max_new_tokens or len(row.ids) >= self.context_tokens:
                finish = "length"
        if finish:
            self.told.append((row.sink, Piece(tuple(row.fresh), finish, row.num_cached, has_end)))
        elif row.ask.is_streamed:
            self.told.append((row.sink, Piece(tuple(row.fresh), num_cached_tokens=row.num_cached)))
            row.fresh = []
        return bool(finish)

    def _leave(self, ended: list[Row]) -> None:
        """Take rows that ended out of the store, and keep what they read."""
        for index in range(len(self.rows) - 1, -1, -1):
            row = self.rows[index]
            if row not in ended:
                continue
            if row.is_failed:
                self.store.held[:, index].zero_()  # numbers that are not finite would reach the row that comes next
            else:
                self.tree.add(row.adapter, row.ids[: row.num_read], self.store, index)
            self._remove(index)
            self.num_places = min(self.max_rows, self.num_places + 1)
