"""Preference of one answer over another: DPO and ORPO on pairs, KTO on answers that are marked as desired or not.

Losses are TRL's (1.16: DPOTrainer "sigmoid", KTOTrainer "kto", experimental ORPOTrainer), which tests compare them
with. Two things are otherwise: ORPO learns the chosen answer alone, not its prompt too, each pair's tokens averaged as
in its paper; KTO's reference point is a mean over the whole step, so that it does not depend on how steps are cut.

Shapes: P paths, each a prompt with an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from ..errors import BadInput
from ..records import Example, TrainSettings
from . import loss
from .objective import Collate, Item, Objective, desired_of, encode_item, padded, require_learnable
from .tokens import Encoded
from .world import current

Tick = Callable[[int, int], None]  # paths done, paths in all

# The mean log-probability of an answer's token is held below zero by this: at zero the odds of the answer are infinite.
SURE = 1e-6
# Above this ratio of desired to undesired answers, weights included, or below 1, the rarer kind is weighed up (KTO,
# arXiv 2402.01306, equation 8).
MOST_DESIRED = 4 / 3
MISMATCH_TRIES = 64  # rows that are looked at for one with another prompt


def untold(done: int, total: int) -> None:
    """The Tick that tells nobody."""


def log_probs(
    model: Any, paths: Sequence[Encoded], pad_id: int, *, batch_tokens: int, path: str, tick: Tick = untold
) -> Any:
    """Log-probability (P,) of each path's answer, float32, without gradient."""
    import torch

    found = torch.zeros(len(paths), dtype=torch.float32)
    world, device, done = current(), model.device, 0
    with torch.no_grad():
        for group in world.share(list(loss.padded_batches(paths, batch_tokens))):
            batch = loss.on_device(padded([paths[i] for i in group], pad_id), device)
            found[group] = loss.path_log_probs(model, batch, path).float().cpu()
            done += len(group) if world.lockstep else len(group) * world.size
            tick(min(done, len(paths)), len(paths))
    return world.total_of_shares(found)


class Preference(Objective):
    """What preference objectives share: items of one or more paths, and log-probabilities kept from the start.

    reference: log-probability of each of `referred` under the model that training starts from, computed once.
    """

    has_reference = True
    reference: Any = None

    def __init__(self, items: Sequence[Item], pad_id: int, beta: float) -> None:
        super().__init__(items, pad_id)
        self.beta = beta
        self.starts = [0, *accumulate(len(item) for item in items)]

    def of(self, indices: Sequence[int], items: Sequence[Item]) -> Preference:
        few = super().of(indices, items)
        assert isinstance(few, Preference), "a copy"
        few.starts, few.reference = [0, *accumulate(len(item) for item in items)], None
        return few

    @property
    def paths(self) -> list[Encoded]:
        """Of all items."""
        return [path for item in self.items for path in item]

    @property
    def referred(self) -> list[Encoded]:
        """Paths whose log-probability the reference holds."""
        return self.paths

    def numbers(self, indices: Sequence[int]) -> list[int]:
        """Where the paths of these items are among all."""
        return [number for index in indices for number in range(self.starts[index], self.starts[index + 1])]

    def batch(self, indices: Sequence[int], collate: Collate = padded) -> loss.Batch:
        return {**super().batch(indices, collate), **self.known(indices)}

    def known(self, indices: Sequence[int]) -> loss.Batch:
        """What the loss of these items needs beside the log-probabilities of their paths."""
        import torch

        paths = [path for index in indices for path in self.items[index]]
        known = {"answer_tokens": torch.tensor([loss.num_loss_tokens([path]) for path in paths]).float()}
        if self.reference is not None:
            known["reference"] = self.reference[self.numbers(indices)]
        return known

    def weight(self, indices: Sequence[int]) -> int:
        """Pairs."""
        return len(indices)

    def losses(self, log_probs_P: Any, known: loss.Batch) -> Any:
        """The loss of each item."""
        raise NotImplementedError

    def rewards(self, log_probs_P: Any, known: loss.Batch) -> Any:
        """Implicit reward (P,), whose order is the preference learned: what each path gained over the reference."""
        return log_probs_P - known["reference"]

    def loss_sum(self, model: Any, batch: loss.Batch, path: str) -> Any:
        return self.losses(loss.path_log_probs(model, batch, path), batch).sum()

    def uncancelled(self, model: Any, batch: loss.Batch, path: str) -> Any:
        """What has the gradient that the loss would have if no answer's part cancelled another's.

        Two answers that differ in a token pull almost every weight two ways, and little of either is left.
        """
        import torch

        found = loss.path_log_probs(model, batch, path)
        (slopes,) = torch.autograd.grad(self.losses(found, batch).sum(), found, retain_graph=True)
        return (slopes.abs() * found).sum()

    def measure(
        self, model: Any, *, batch_tokens: int, path: str = loss.AT_LOSS_TOKENS
    ) -> tuple[float, dict[str, float]]:
        """Mean loss over the items; dev_preference: the share of pairs whose chosen answer has the higher reward."""
        indices = range(len(self.items))
        if not len(indices):
            return 0.0, {}
        paths = [path_ for index in indices for path_ in self.items[index]]
        found = log_probs(model, paths, self.pad_id, batch_tokens=batch_tokens, path=path)
        known = {**self.known(indices), **self.whole(model, indices, batch_tokens, path)}
        mean = float(self.losses(found, known).sum()) / self.weight(indices)
        rewards = self.rewards(found, known).tolist()
        pairs = self.pairs(indices)
        share = sum(rewards[a] > rewards[b] for a, b in pairs) / len(pairs) if pairs else None
        return mean, {} if share is None else {"dev_preference": share}

    def whole(self, model: Any, indices: Sequence[int], batch_tokens: int, path: str) -> loss.Batch:
        """What the loss needs to know of all these items together."""
        return {}

    def pairs(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """(chosen, rejected) as numbers among the paths of these items."""
        return [(2 * at, 2 * at + 1) for at in range(len(indices))]

    def prepare(
        self, model: Any, *, batch_tokens: int, path: str, tick: Tick = untold, only: Sequence[int] | None = None
    ) -> None:
        """Fill in the reference from the model as it is; only: of these items, the others are left at zero."""
        import torch

        referred = self.referred
        numbers = range(len(referred)) if only is None else self.referred_by(only)
        paths = [referred[number] for number in numbers]
        self.reference = torch.zeros(len(referred), dtype=torch.float32)
        self.reference[list(numbers)] = log_probs(
            model, paths, self.pad_id, batch_tokens=batch_tokens, path=path, tick=tick
        )

    def referred_by(self, indices: Sequence[int]) -> list[int]:
        """Which of `referred` the loss of these items needs."""
        return self.numbers(indices)

    def loss_at_start(self, indices: Sequence[int]) -> float:
        """The mean loss of these items while the model is its own reference."""
        raise NotImplementedError


class Dpo(Preference):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7); items are pairs."""

    name = "dpo"

    def losses(self, log_probs_P: Any, known: loss.Batch) -> Any:
        """-log sigmoid(beta * (chosen's gain over the reference - rejected's)) of each pair."""
        import torch.nn.functional as F

        gains = self.rewards(log_probs_P, known).view(-1, 2)
        return -F.logsigmoid(self.beta * (gains[:, 0] - gains[:, 1]))

    def loss_at_start(self, indices: Sequence[int]) -> float:
        return 0.6931471805599453  # ln 2


class Orpo(Preference):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691, equation 6); items: (chosen, rejected).

    Needs no reference; beta is the paper's lambda.
    """

    name = "orpo"
    has_reference = False

    def rewards(self, log_probs_P: Any, known: loss.Batch) -> Any:
        """Mean log-probability of an answer's token."""
        return log_probs_P / known["answer_tokens"]

    def losses(self, log_probs_P: Any, known: loss.Batch) -> Any:
        """Mean negative log-likelihood of the chosen answer's tokens, less beta * log sigmoid(log odds ratio)."""
        import torch
        import torch.nn.functional as F

        means = self.rewards(log_probs_P, known).view(-1, 2)
        held = means.clamp(max=-SURE)
        log_odds = held - torch.log(-torch.expm1(held))
        return -means[:, 0] - self.beta * F.logsigmoid(log_odds[:, 0] - log_odds[:, 1])


class Kto(Preference):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7).

    Items: one path, desired or not, or a pair of the two. Each prompt is also given the answer of another row; what
    those gained over the reference, on average and at least 0, is the reference point of a step.
    """

    name = "kto"

    def __init__(
        self, items: Sequence[Item], pad_id: int, beta: float, desired: Sequence[Sequence[bool]], longest: int,
        weights: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        """desired: for each path of each item. longest: a mismatched path is cut at so many tokens, or its own length.

        weights: of desired and undesired answers; None: as balanced says.
        """
        super().__init__(items, pad_id, beta)
        self.desired = [flag for flags in desired for flag in flags]
        assert len(self.desired) == self.starts[-1], "one flag a path"
        self.weights = balanced(sum(self.desired), len(self.desired)) if weights is None else weights
        self.mismatched = mismatched(self.paths, longest)

    def of(self, indices: Sequence[int], items: Sequence[Item]) -> Kto:
        few = super().of(indices, items)
        assert isinstance(few, Kto), "a copy"
        few.desired = [self.desired[number] for number in self.numbers(indices)]
        few.mismatched = mismatched(few.paths, 0)
        return few

    @property
    def referred(self) -> list[Encoded]:
        return [*self.paths, *self.mismatched]

    def referred_by(self, indices: Sequence[int]) -> list[int]:
        numbers = self.numbers(indices)
        return [*numbers, *(self.starts[-1] + number for number in numbers)]

    def weight(self, indices: Sequence[int]) -> int:
        """Answers."""
        return len(self.numbers(indices))

    def known(self, indices: Sequence[int]) -> loss.Batch:
        import torch

        return {
            **super().known(indices),
            "desired": torch.tensor([self.desired[number] for number in self.numbers(indices)]),
        }

    def losses(self, log_probs_P: Any, known: loss.Batch) -> Any:
        """weight * (1 - sigmoid(beta * (gain - point))) of a desired answer, of an undesired one with -beta."""
        import torch

        gains = log_probs_P - known["reference"] - known["point"]
        signs = torch.where(known["desired"], 1.0, -1.0)
        weights = torch.where(known["desired"], *self.weights)
        return weights * torch.sigmoid(-signs * self.beta * gains)

    def beside(self, indices: Sequence[int], collate: Collate = padded) -> loss.Batch | None:
        """The mismatched paths of a micro-batch."""
        numbers = self.numbers(indices)
        batch = collate([self.mismatched[number] for number in numbers], self.pad_id)
        batch["reference"] = self.reference[[self.starts[-1] + number for number in numbers]]
        return batch

    def begin(self, model: Any, beside: Sequence[loss.Batch], num_own: int, weight: int, path: str) -> loss.Batch:
        """point: the reference point of a step, from all its micro-batches' mismatched paths."""
        import torch

        gained = torch.zeros((), device=model.device)
        with torch.no_grad():
            for number, batch in enumerate(beside):
                found = (loss.path_log_probs(model, batch, path) - batch["reference"]).sum()
                gained += found if number < num_own else 0
        return {"point": (current().total(gained) / weight).clamp(min=0)}

    def whole(self, model: Any, indices: Sequence[int], batch_tokens: int, path: str) -> loss.Batch:
        numbers = self.numbers(indices)
        paths = [self.mismatched[number] for number in numbers]
        found = log_probs(model, paths, self.pad_id, batch_tokens=batch_tokens, path=path)
        kept = self.reference[[self.starts[-1] + number for number in numbers]]
        return {"point": (found - kept).mean().clamp(min=0)}

    def pairs(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """The two answers of an item; of single ones each desired with one undesired, of its prompt or by chance."""
        flags = [self.desired[number] for number in self.numbers(indices)]
        found: list[tuple[int, int]] = []
        single: dict[bool, list[int]] = {True: [], False: []}
        at = 0
        for index in indices:
            num = len(self.items[index])
            if num == 2:
                found.append((at, at + 1))
            else:
                single[flags[at]].append(at)
            at += num
        paths = [path for index in indices for path in self.items[index]]
        undesired = self._by_prompt(paths, single[False])
        rest = []
        for number in single[True]:
            alike = undesired.get(tuple(paths[number].ids[: paths[number].num_prompt_tokens]))
            if alike:
                found.append((number, alike.pop()))
            else:
                rest.append(number)
        left = sorted(number for alike in undesired.values() for number in alike)
        random.Random(0).shuffle(left)
        return [*found, *zip(rest, left, strict=False)]

    def _by_prompt(self, paths: Sequence[Encoded], numbers: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
        made: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            made.setdefault(tuple(paths[number].ids[: paths[number].num_prompt_tokens]), []).append(number)
        return made

    def loss_at_start(self, indices: Sequence[int]) -> float:
        flags = [self.desired[number] for number in self.numbers(indices)]
        return sum(self.weights[0] if flag else self.weights[1] for flag in flags) / 2 / len(flags)


def balanced(num_desired: int, num_answers: int) -> tuple[float, float]:
    """Weights of desired and undesired answers: 1 and 1 while the one are 1 to 4/3 times the other, else the rarer
    kind counts as much as the other."""
    num_undesired = num_answers - num_desired
    if not num_desired or not num_undesired or num_undesired <= num_desired <= MOST_DESIRED * num_undesired:
        return 1.0, 1.0
    if num_desired < num_undesired:
        return num_undesired / num_desired, 1.0
    return 1.0, num_desired / num_undesired


def mismatched(paths: Sequence[Encoded], longest: int) -> list[Encoded]:
    """Each path's prompt with another path's answer: drawn by chance, the same each time, to another prompt if any."""
    order = list(range(len(paths)))
    random.Random(0).shuffle(order)
    prompts = [tuple(path.ids[: path.num_prompt_tokens]) for path in paths]
    made: list[Encoded | None] = [None] * len(paths)
    for at, number in enumerate(order):
        others = (order[(at + step) % len(order)] for step in range(1, min(len(order), MISMATCH_TRIES)))
        other = next((o for o in others if prompts[o] != prompts[number]), order[(at + 1) % len(order)])
        path = paths[number]
        ids = [*prompts[number], *paths[other].ids[paths[other].num_prompt_tokens :]]
        made[number] = Encoded(ids[: max(longest, len(path.ids))], path.num_prompt_tokens)
    return [path for path in made if path is not None]


def objective(
    tokenizer: Any, examples: Sequence[Example], settings: TrainSettings, what: str, like: Objective | None = None
) -> Objective:
    """The examples tokenised for the objective that settings name.

    what: "training" or "dev", for the message. like: of the training rows, whose weights those of dev rows are.
    Raises: TemplateRefused, BadInput naming a row that the objective cannot learn from.
    """
    kind, pad_id = settings.objective, tokenizer.pad_token_id
    require_learnable(examples, kind, what)
    items = [encode_item(tokenizer, example, kind) for example in examples]
    if kind == "dpo":
        return Dpo(items, pad_id, settings.dpo_beta)
    if kind == "orpo":
        return Orpo(items, pad_id, settings.orpo_lambda)
    if kind == "kto":
        desired = [desired_of(example) for example in examples]
        weights = like.weights if isinstance(like, Kto) else None
        made = Kto(items, pad_id, settings.kto_beta, desired, settings.seq_len, weights)
        if what == "dev" and settings.stop_on == "preference" and items and not made.pairs(range(len(items))):
            raise BadInput(
                f"train.stop_on: preference compares desired with undesired answers, and the {len(items)} dev rows "
                "hold one kind alone; give more rows, or train.stop_on: task"
            )
        return made
    assert kind == "sft", kind
    return Objective(items, pad_id)
