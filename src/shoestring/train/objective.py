"""What training minimises, and what it draws: an item is one path (prompt and answer), or the two paths of a pair.

Here the answers' negative log-likelihood; preference.py has the objectives that prefer one answer to another.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..config import PREFERENCES
from ..errors import BadInput
from ..records import Example
from . import loss
from .tokens import Encoded, encode_example, lengths_or_refusals
from .world import current

Item = tuple[Encoded, ...]
# A row that is asked about the model: beginning and end of its prompt, end of its answer; the latter grows from row to
# row by its own length, since a wrong mean shows in answers of different lengths.
PROBED_ITEMS, PROBED_HEAD, PROBED_TAIL, PROBED_ANSWER = 4, 24, 8, 6
# collate(paths, pad_id) -> batch: padded, or a forest.
Collate = Callable[[Sequence[Encoded], int], loss.Batch]


def padded(paths: Sequence[Encoded], pad_id: int) -> loss.Batch:
    """The Collate of padded rows."""
    return loss.collate(paths, pad_id, rounded=True)


class Objective:
    """Supervised: mean negative log-likelihood of the answer tokens of a step."""

    name = "sft"

    def __init__(self, items: Sequence[Item], pad_id: int) -> None:
        self.items, self.pad_id = items, pad_id

    def probed(self) -> Objective:
        """The same objective over a few items cut short, the lightest and the heaviest, without a reference.

        For questions about the model and the code, whose answers do not depend on the length of rows.
        """
        order = sorted(range(len(self.items)), key=lambda index: (loss.num_loss_tokens(self.items[index]), index))
        half = PROBED_ITEMS // 2
        chosen = order if len(order) <= PROBED_ITEMS else [*order[:half], *order[-half:]]
        items = [_shortened(self.items[index], PROBED_ANSWER * place) for place, index in enumerate(chosen, 1)]
        return self.of(chosen, items)

    def of(self, indices: Sequence[int], items: Sequence[Item]) -> Objective:
        """The same objective over items that stand for those of these indices."""
        few = copy.copy(self)
        few.items = items
        return few

    def batch(self, indices: Sequence[int], collate: Collate = padded) -> loss.Batch:
        """The micro-batch of these items."""
        return collate([path for index in indices for path in self.items[index]], self.pad_id)

    def weight(self, indices: Sequence[int]) -> int:
        """What the summed loss of these items is divided by for its mean: answer tokens."""
        return sum(loss.num_loss_tokens(self.items[index]) for index in indices)

    def loss_sum(self, model: Any, batch: loss.Batch, path: str) -> Any:
        """Summed loss of a micro-batch, float32."""
        return loss.loss_sum(model, batch, path)

    def beside(self, indices: Sequence[int], collate: Collate = padded) -> loss.Batch | None:
        """Further paths of a micro-batch that run once, without gradient, before its step; None without any."""
        return None

    def begin(self, model: Any, beside: Sequence[loss.Batch], num_own: int, weight: int, path: str) -> loss.Batch:
        """What the loss of each micro-batch needs to know of its whole step, from what runs beside it.

        num_own: of them that count; weight: of the whole step, over all processes.
        """
        return {}

    def measure(
        self, model: Any, *, batch_tokens: int, path: str = loss.AT_LOSS_TOKENS
    ) -> tuple[float, dict[str, float]]:
        """Mean loss over all items, in batches of at most batch_tokens padded tokens, and further measures by name."""
        import torch

        world, device = current(), model.device
        total = torch.zeros((), dtype=torch.float64)
        longest = [max(item, key=lambda path: len(path.ids)) for item in self.items]
        with torch.no_grad():
            for group in world.share(list(loss.padded_batches(longest, batch_tokens))):
                total += float(self.loss_sum(model, loss.on_device(self.batch(group), device), path))
        return float(world.total_of_shares(total)) / max(1, self.weight(range(len(self.items)))), {}

    def mean_loss(self, model: Any, *, batch_tokens: int, path: str = loss.AT_LOSS_TOKENS) -> float:
        """Mean loss over all items."""
        return self.measure(model, batch_tokens=batch_tokens, path=path)[0]


def _shortened(item: Item, answer_tokens: int) -> Item:
    """The ends of its answers; of a pair from where they differ, or rounding is all that would be compared."""
    answers = [path.ids[path.num_prompt_tokens :] for path in item]
    same = next((i for i, tokens in enumerate(zip(*answers, strict=False)) if len(set(tokens)) > 1), None)
    made = []
    for path, answer in zip(item, answers, strict=True):
        prompt = path.ids[: path.num_prompt_tokens]
        if len(prompt) > PROBED_HEAD + PROBED_TAIL:
            prompt = [*prompt[:PROBED_HEAD], *prompt[-PROBED_TAIL:]]
        at = len(answer) - answer_tokens if same is None else min(same, len(answer) - answer_tokens)
        at = max(at, 0)
        made.append(Encoded([*prompt, *answer[at : at + answer_tokens]], len(prompt)))
    return tuple(made)


def require_learnable(examples: Sequence[Example], kind: str, what: str) -> None:
    """Raises: BadInput naming the first row that the objective of that name cannot learn from.

    what: "training" or "dev", for the message.
    """
    flagged = [e for e in examples if e.desired is not None]
    if kind == "sft":
        lacking = [e for e in flagged if not e.desired]
        why, remedy = "are marked as undesired", "leave them out, or give objective: kto"
    elif kind == "kto":
        lacking = [e for e in examples if not e.rejected and e.desired is None]
        why = "are neither marked nor pairs"
        remedy = "give each a `label` (true: desired, false: not), or both `chosen` and `rejected`; or objective: sft"
    else:
        lacking = [e for e in examples if not e.rejected]
        why = "have no rejected answer"
        marked = any(not e.rejected for e in flagged)
        other = "objective: kto, which learns from rows with a `label`" if marked else "objective: sft"
        remedy = f"give `chosen` and `rejected`, or {other}"
    if lacking:
        raise BadInput(
            f"train.objective: {kind} cannot learn from {len(lacking)} of {len(examples)} {what} rows, which {why}, "
            f"first {lacking[0].source}:{lacking[0].line}; {remedy}"
        )
    if kind == "kto" and what == "training" and not any(e.rejected for e in examples):
        kinds = {e.desired for e in examples}
        if len(kinds) == 1:
            only, other = ("desired", "undesired") if True in kinds else ("undesired", "desired")
            raise BadInput(
                f"train.objective: kto learns from desired and undesired answers, and all {len(examples)} {what} rows "
                f"are {only}; add {other} ones (`label: {str(other == 'desired').lower()}`), or give objective: sft"
            )


def other_side(example: Example) -> Example:
    """The pair's prompt with the answer that lost."""
    messages = (*example.prompt, *example.rejected)
    span = (len(example.prompt), len(messages))
    return dataclasses.replace(example, messages=messages, answer_span=span, rejected=(), id="")


def sides(example: Example, kind: str) -> tuple[Example, ...]:
    """The example, under preference objectives with the other side where it is a pair."""
    return (example, other_side(example)) if kind in PREFERENCES and example.rejected else (example,)


def desired_of(example: Example) -> tuple[bool, ...]:
    """Under kto, whether each of its sides is desired."""
    return (True, False)[: len(sides(example, "kto"))] if example.desired is None else (example.desired,)


def encode_item(tokenizer: Any, example: Example, kind: str) -> Item:
    """The example's paths under the objective of that name."""
    return tuple(encode_example(tokenizer, side) for side in sides(example, kind))


def count_longest(tokenizer: Any, examples: Sequence[Example], kind: str) -> list[tuple[int, int] | str]:
    """(prompt tokens, answer tokens with the end token) of each row, or why the template refuses it.

    Under preference objectives the longer answer of a pair counts.
    """
    chosen = lengths_or_refusals(tokenizer, examples)
    if kind not in PREFERENCES:
        return chosen
    lost = iter(lengths_or_refusals(tokenizer, [other_side(e) for e in examples if e.rejected]))
    return [_longer(pair, next(lost)) if e.rejected else pair for pair, e in zip(chosen, examples, strict=True)]


def _longer(one: tuple[int, int] | str, other: tuple[int, int] | str) -> tuple[int, int] | str:
    """Of two sides of a pair the longer, or the refusal of either."""
    refusal = next((side for side in (one, other) if isinstance(side, str)), None)
    return refusal if refusal is not None else max(one, other, key=lambda side: sum(map(int, side)))
