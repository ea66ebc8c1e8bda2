"""Greedy generation in batches with a model on this machine.

An own loop beats `model.generate` here: what prompts begin with alike is computed once, rows that end make room for
others, and keys and values stay in place instead of being copied at every token. What it returns is what
`model.generate(do_sample=False)` returns, to rounding.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import DoesNotFit, ModelError
from ...messages import Message, Prompt, read_answer, split_tools
from ...records import Completion, Device, Generate, Progress, no_progress
from ...train.base import encode_prompt, load_base, load_tokenizer, quiet_loading, stop_token_ids
from ...train.world import current
from .attention import NotOverAForest
from .forest import ForestDecoder, OnDone
from .padded import decode_greedy

# on_answer(prompt, completion): told as each is there.
OnAnswer = Callable[[Prompt, Completion], None]

MAX_ROWS = {"cpu": 128, "mps": 128, "cuda": 256}
# Memory for the keys, values and activations of one batch where the device does not say what is free.
BATCH_BYTES = 1 << 30
# Share of the free accelerator memory one batch may take.
FREE_FRAC = 0.5


class LocalGenerator:
    """A model, its tokenizer and the limits of what it may be asked; `generate` is a records.Generate."""

    def __init__(self, model: Any, tokenizer: Any, *, max_new_tokens: int, name: str = "the model") -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_new_tokens = max_new_tokens
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.context_tokens: int = limit or int(1e9)
        self.stop_ids = stop_token_ids(tokenizer, model)
        self.route = ""  # how the last prompts were answered, in words
        if max_new_tokens >= self.context_tokens:
            raise ModelError(
                f"max_new_tokens {max_new_tokens} leaves no room for a prompt in the {self.context_tokens} tokens "
                f"{name} reads; lower task.max_new_tokens"
            )

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, template included."""
        return len(encode_prompt(self.tokenizer, messages))

    def generate(
        self,
        prompts: list[Prompt],
        progress: Progress = no_progress,
        limits: Sequence[int] | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order; equal prompts are run once.

        limits: most new tokens of each prompt (max_new_tokens); of equal prompts the last one's counts.
        on_answer is told of each as soon as it is there. latency_s is the row's share of the wall time: that of each
        step divided by the rows in it. num_completion_tokens counts the end token. Where a prompt declares tools, calls
        are in the text as Message.text writes them. Raises: ModelError, DoesNotFit.
        """
        rows_of: dict[Prompt, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows_of.setdefault(prompt, []).append(row)
        unique = list(rows_of)
        limit_of = dict(zip(prompts, limits or [self.max_new_tokens] * len(prompts), strict=True))
        ids = [self._encode(prompt, rows_of[prompt][0]) for prompt in unique]
        most = [
            min(limit_of[prompt], self.max_new_tokens, self.context_tokens - len(own))
            for prompt, own in zip(unique, ids, strict=True)
        ]
        completions: dict[int, Completion] = {}
        left = dict.fromkeys(range(len(unique)))

        def on_done(i: int, tokens: list[int], seconds: float) -> None:
            del left[i]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            text = read_answer(text, split_tools(unique[i])[0]).text
            rows = rows_of[unique[i]]
            stopped = tokens[-1] in self.stop_ids
            completion = Completion(text, len(ids[i]), len(tokens), seconds / len(rows), stopped=stopped)
            completions.update((row, completion) for row in rows)
            if on_answer is not None:
                on_answer(unique[i], completion)
            progress("generate", len(completions), len(prompts))

        was_training = self.model.training
        self.model.eval()
        try:
            progress("generate", 0, len(prompts))
            self._decode(ids, most, left, on_done)
        finally:
            self.model.train(was_training)
        return [completions[row] for row in range(len(prompts))]

    def close(self) -> None:
        """Give the memory back."""
        import torch

        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encode(self, prompt: Prompt, row: int) -> list[int]:
        ids = encode_prompt(self.tokenizer, prompt)
        if len(ids) >= self.context_tokens:
            start = prompt[-1].content[:40]
            raise ModelError(
                f"prompt {row + 1} ({start!r}...) has {len(ids)} tokens; {self.name} reads {self.context_tokens}, "
                "which leaves none for the answer; shorten the prompt (fewer shots, a shorter task.instruction), "
                "or take a model with a longer context"
            )
        return ids

    def _decode(self, ids: list[list[int]], limits: list[int], left: dict[int, None], on_done: OnDone) -> None:
        """Answer the prompts in `left`, which on_done empties; fewer at a time where memory runs out."""
        import torch

        kind = self.model.device.type
        max_rows = MAX_ROWS.get(kind, 64)
        budget_tokens = _batch_bytes(kind) // _bytes_per_token(self.model)
        decode = self._over_forest
        if current().lockstep:
            decode, self.route = self._padded, "padded batches: processes answer together"
        while left:
            try:
                decode(ids, limits, list(left), on_done, max_rows, budget_tokens)
                continue
            except NotOverAForest as error:
                decode, self.route = self._padded, f"padded batches: {error}"
                continue
            except torch.OutOfMemoryError as error:
                if current().lockstep:
                    raise
                if max_rows == 1:
                    longest = max(len(ids[i]) for i in left)
                    raise DoesNotFit(
                        f"{self.name} runs out of memory on one prompt of {longest} tokens with "
                        f"{self.max_new_tokens} new ones ({error}); lower task.max_new_tokens or use method: qlora"
                    ) from error
            torch.cuda.empty_cache()
            max_rows, budget_tokens = max(1, min(max_rows, len(left)) // 2), budget_tokens // 2

    def _over_forest(
        self,
        ids: list[list[int]],
        limits: list[int],
        which: list[int],
        on_done: OnDone,
        max_rows: int,
        budget_tokens: int,
    ) -> None:
        self.route = "prefix forest"
        ForestDecoder(
            self.model,
            stop_ids=self.stop_ids,
            max_rows=max_rows,
            budget_tokens=budget_tokens,
            on_done=on_done,
            name=self.name,
        ).run(ids, limits, which)

    def _padded(
        self,
        ids: list[list[int]],
        limits: list[int],
        which: list[int],
        on_done: OnDone,
        max_rows: int,
        budget_tokens: int,
    ) -> None:
        """Prompts of like length together, as many as the memory of a batch allows."""
        order = sorted(which, key=lambda i: -len(ids[i]))
        while order:
            longest = len(ids[order[0]]) + self.max_new_tokens
            size = max(1, min(max_rows, budget_tokens // longest))
            batch, order = order[:size], order[size:]
            started = time.monotonic()
            answers = decode_greedy(
                self.model,
                [ids[i] for i in batch],
                stop_ids=self.stop_ids,
                pad_id=self.tokenizer.pad_token_id,
                max_new_tokens=self.max_new_tokens,
                name=self.name,
                limits=[limits[i] for i in batch],
            )
            share_s = (time.monotonic() - started) / len(batch)
            for i, (tokens, _) in zip(batch, answers, strict=True):
                on_done(i, tokens, share_s)


def load_generator(
    model: str,
    adapter_dir: Path | None = None,
    *,
    method: str = "lora",
    device: Device,
    max_new_tokens: int,
    over_all_gpus: bool = False,
) -> LocalGenerator:
    """A model, with an adapter if given, ready to generate; the adapter is not merged.

    over_all_gpus: its layers one after the other on the GPUs of this machine, for a base that fits none of them.
    method: full: adapter_dir holds the whole model, rounded here to the device's type.
    Raises: ModelError, MissingDependency.
    """
    import torch

    if device.kind == "cpu":
        torch.set_num_threads(device.num_threads)
    tokenizer = load_tokenizer(model)
    is_full = method == "full" and adapter_dir is not None
    name, quantise = str(adapter_dir) if is_full else model, method == "qlora"
    network = load_base(name, device=device, quantise=quantise, over_all_gpus=over_all_gpus)
    if adapter_dir is not None and not is_full:
        from peft import PeftModel

        try:
            with quiet_loading():
                network = PeftModel.from_pretrained(network, str(adapter_dir), is_trainable=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"the adapter in {adapter_dir} cannot be put on {model!r}: {reason}; train this rung again"
            ) from error
    return LocalGenerator(network.eval(), tokenizer, max_new_tokens=max_new_tokens, name=model)


def make_generate(model: Any, tokenizer: Any, *, max_new_tokens: int) -> Generate:
    """records.Generate over a model already loaded, such as one in training (its mode is put back)."""
    return LocalGenerator(model, tokenizer, max_new_tokens=max_new_tokens).generate


def _bytes_per_token(model: Any) -> int:
    """Memory a token of a batch takes: keys, values and the widest activations, generously."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    except (AttributeError, RuntimeError):  # no attention, or heads that differ between layers
        width = hidden
    widest = getattr(config, "intermediate_size", None)
    widest = widest if isinstance(widest, int) else 4 * hidden
    return (2 * config.num_hidden_layers * width + 8 * hidden + 4 * widest) * max(2, model.dtype.itemsize)


def _alone(value: int) -> list[int]:
    return [value]


def _batch_bytes(kind: str) -> int:
    import torch

    if kind == "cuda":
        # Processes that generate together over a base in shards must make the same batches.
        world = current()
        free_bytes = min((world.of_all if world.lockstep else _alone)(torch.cuda.mem_get_info()[0]))
        return int(free_bytes * FREE_FRAC)
    return BATCH_BYTES
