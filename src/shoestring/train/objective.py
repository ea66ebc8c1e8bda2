"""What training minimises: the answers' negative log-likelihood, or preference of one answer over another (DPO).

An item is what a schedule draws: one path (prompt and answer), or the two paths of a pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import BadInput
from ..records import Example, TrainSettings
from . import loss
from .tokens import Encoded, encode_example, lengths_or_refusals
from .world import current

Item = tuple[Encoded, ...]
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

    def batch(self, indices: Sequence[int], collate: Collate = padded) -> loss.Batch:
        """The micro-batch of these items."""
        return collate([path for index in indices for path in self.items[index]], self.pad_id)

    def weight(self, indices: Sequence[int]) -> int:
        """What the summed loss of these items is divided by for its mean: answer tokens."""
        return sum(loss.num_loss_tokens(self.items[index]) for index in indices)

    def loss_sum(self, model: Any, batch: loss.Batch, path: str) -> Any:
        """Summed loss of a micro-batch, float32."""
        return loss.loss_sum(model, batch, path)

    def mean_loss(self, model: Any, *, batch_tokens: int, path: str = loss.AT_LOSS_TOKENS) -> float:
        """Mean loss over all items, without gradient, in batches of at most batch_tokens padded tokens."""
        import torch

        world, device = current(), model.device
        total = torch.zeros((), dtype=torch.float64)
        longest = [max(item, key=lambda path: len(path.ids)) for item in self.items]
        with torch.no_grad():
            groups = list(loss.padded_batches(longest, max(1, batch_tokens // self.paths_per_item)))
            for group in world.share(groups):
                total += float(self.loss_sum(model, loss.on_device(self.batch(group), device), path))
        return float(world.total_of_shares(total)) / max(1, self.weight(range(len(self.items))))

    @property
    def paths_per_item(self) -> int:
        return max((len(item) for item in self.items), default=1)


class Preference(Objective):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7); items: (chosen, rejected).

    The reference is the base without its adapter; its log-probabilities are computed once.
    """

    name = "dpo"

    def __init__(self, items: Sequence[Item], pad_id: int, beta: float) -> None:
        super().__init__(items, pad_id)
        self.beta = beta
        self.reference: Any = None  # (items, 2) log-probabilities

    def batch(self, indices: Sequence[int], collate: Collate = padded) -> loss.Batch:
        made = super().batch(indices, collate)
        if self.reference is not None:
            made["reference"] = self.reference[list(indices)]
        return made

    def weight(self, indices: Sequence[int]) -> int:
        """Pairs."""
        return len(indices)

    def loss_sum(self, model: Any, batch: loss.Batch, path: str) -> Any:
        """-log sigmoid(beta * (chosen's gain over the reference - rejected's)), summed over pairs."""
        import torch.nn.functional as F

        gains = loss.path_log_probs(model, batch, path).view(-1, 2) - batch["reference"]
        return -F.logsigmoid(self.beta * (gains[:, 0] - gains[:, 1])).sum()

    def prepare(
        self, model: Any, *, batch_tokens: int, path: str, tick: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """The reference's log-probabilities, with the adapter off; tick(paths done, paths) after each batch."""
        import torch

        paths = [path_ for item in self.items for path_ in item]
        found = torch.zeros(len(paths), dtype=torch.float32)
        world, device, done = current(), model.device, 0
        with torch.no_grad(), model.disable_adapter():
            for group in world.share(list(loss.padded_batches(paths, batch_tokens))):
                batch = loss.on_device(padded([paths[i] for i in group], self.pad_id), device)
                found[group] = loss.path_log_probs(model, batch, path).float().cpu()
                done += len(group) if world.lockstep else len(group) * world.size
                tick(min(done, len(paths)), len(paths))
        self.reference = world.total_of_shares(found).view(-1, 2)


def objective(tokenizer: Any, examples: Sequence[Example], settings: TrainSettings, what: str) -> Objective:
    """The examples tokenised for the objective that settings name; what: "training" or "dev", for the message.

    Raises: TemplateRefused, BadInput naming a pair without its rejected answer.
    """
    if settings.objective == "sft":
        return Objective([encode_item(tokenizer, e, "sft") for e in examples], tokenizer.pad_token_id)
    require_pairs(examples, what)
    pairs = [encode_item(tokenizer, e, "dpo") for e in examples]
    return Preference(pairs, tokenizer.pad_token_id, settings.dpo_beta)


def require_pairs(examples: Sequence[Example], what: str) -> None:
    """Raises: BadInput naming the first row without a rejected answer."""
    lacking = [e for e in examples if not e.rejected]
    if lacking:
        raise BadInput(
            f"train.objective: dpo learns from pairs, and {len(lacking)} of {len(examples)} {what} rows have no "
            f"rejected answer, first {lacking[0].source}:{lacking[0].line}; "
            "give `chosen` and `rejected`, or objective: sft"
        )


def other_side(example: Example) -> Example:
    """The pair's prompt with the answer that lost."""
    messages = (*example.prompt, *example.rejected)
    span = (len(example.prompt), len(messages))
    return dataclasses.replace(example, messages=messages, answer_span=span, rejected=(), id="")


def encode_item(tokenizer: Any, example: Example, kind: str) -> Item:
    """The example's paths under the objective of that name, unchecked."""
    sides = (example, other_side(example)) if kind == "dpo" else (example,)
    return tuple(encode_example(tokenizer, side) for side in sides)


def count_longest(tokenizer: Any, examples: Sequence[Example], kind: str) -> list[tuple[int, int] | str]:
    """(prompt tokens, answer tokens with the end token) of each row, or why the template refuses it.

    Under dpo the longer answer of a pair counts.
    """
    chosen = lengths_or_refusals(tokenizer, examples)
    if kind != "dpo":
        return chosen
    lost = iter(lengths_or_refusals(tokenizer, [other_side(e) for e in examples if e.rejected]))
    return [_longer(pair, next(lost)) if e.rejected else pair for pair, e in zip(chosen, examples, strict=True)]


def _longer(one: tuple[int, int] | str, other: tuple[int, int] | str) -> tuple[int, int] | str:
    """Of two sides of a pair the longer, or the refusal of either."""
    refusal = next((side for side in (one, other) if isinstance(side, str)), None)
    return refusal if refusal is not None else max(one, other, key=lambda side: sum(map(int, side)))
