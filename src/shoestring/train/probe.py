"""Gates that ask the model itself: a few rows cut short, forward and backward, weights as they were afterwards.

Of a model that is trained whole, what would take as much memory again is asked of a part: gradients are compared on
PROBED_NUMBERS of them, evenly spread, and the weights that change meanwhile are the smallest ones.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TrainingError
from . import full, gates, loss, parity, preflight, weight_gates
from .adapter import bare, fresh_copy, is_full, load_trained
from .gates import REFUSE, WARN, Finding, judged
from .loop import StepItems, begin_step, save_trained, step_loss
from .objective import Collate, padded
from .preference import Preference
from .schedule import Schedule
from .setup import SetUp
from .tokens import Encoded

PROBED_NUMBERS = 2**24
WEIGHTS_STIRRED = 1.02  # times a weight, while its effect is looked at
# Largest difference of gradients by rounding alone, relative to their norm. Over an FP8 base a last bit turned in 16
# bits is up to 1/8 in FP8.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03, "fp8": 0.4}


# A base that reads the rows loses so many times more on their tokens shuffled (1.5 to 2.3 on the embedded models; 1.03
# with the embedding of another tokenizer).
READS = 1.1


class Whole(NamedTuple):
    """One pass forward and backward: loss, gradient as Probe.gradients gives it, matrices without one, and that of
    each weight that gates may change."""

    loss: float
    gradient: Any
    lacking: list[str]
    of_changeable: dict[str, Any]


class Probe:
    """A set-up under examination, on a few rows cut short; their gradients, cut in different ways."""

    def __init__(self, ready: SetUp) -> None:
        self.ready, self.learned = ready, ready.learned.probed()
        self.indices = list(range(len(self.learned.items)))
        self.first_sides = [item[0] for item in self.learned.items]

    @property
    def shortest(self) -> Encoded:
        return min(self.first_sides, key=lambda path: len(path.ids))

    def trainable(self) -> dict[str, Any]:
        return {name: p for name, p in self.ready.tuned.named_parameters() if p.requires_grad}

    def changeable(self) -> dict[str, Any]:
        """What gates may change: an adapter, or of a whole model the smallest weights."""
        own = self.trainable()
        if not is_full(self.ready.tuned):
            return own
        found, size = {}, 0
        for name in sorted(own, key=lambda name: own[name].numel()):
            size += own[name].numel()
            if size > PROBED_NUMBERS:
                break
            found[name] = own[name]
        return found

    def gradients(self, micro_batches: Sequence[Sequence[int]], collate: Collate = padded) -> tuple[float, Any]:
        """Loss of one step and its gradient (of PROBED_NUMBERS at most) as one vector, as training computes them."""
        import torch

        ready = self.ready
        step = tuple(tuple(batch) for batch in micro_batches)
        item = StepItems(self.learned, Schedule((step,), (), ()), collate)[0]
        ready.tuned.zero_grad()
        begin_step(self.learned, ready.tuned, item, ready.path, ready.device)
        total = 0.0
        for batch in item["micro_batches"]:
            value = step_loss(self.learned, ready.tuned, batch, item["weight"], ready.path, ready.device)
            if value.requires_grad:  # else no adapter takes part, which is a finding
                value.backward()
            total += float(value.detach())
        own = self.trainable().values()
        stride = -(-sum(p.numel() for p in own) // PROBED_NUMBERS)
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in own]
        return total, torch.cat([part.flatten()[::stride].float() for part in parts])

    @functools.cached_property
    def whole(self) -> Whole:
        """The rows in one micro-batch, at the weights that the examination begins with."""
        total, gradient = self.gradients([self.indices])
        own = self.trainable()
        lacking = [name for name, p in own.items() if p.grad is None or not bool(p.grad.any())]
        return Whole(total, gradient, lacking, {name: own[name].grad for name in self.changeable() if name in own})

    @functools.cached_property
    def uncancelled(self) -> float:
        """Norm of Preference.uncancelled's gradient: what rounding is relative to."""
        ready, learned = self.ready, self.learned
        if not isinstance(learned, Preference):
            return 0.0
        item = StepItems(learned, Schedule(((tuple(self.indices),),), (), ()))[0]
        begin_step(learned, ready.tuned, item, ready.path, ready.device)
        ready.tuned.zero_grad()
        with loss.precision(ready.device):
            (learned.uncancelled(ready.tuned, item["micro_batches"][0], ready.path) / item["weight"]).backward()
        grads = [p.grad for p in self.trainable().values() if p.grad is not None]
        return math.sqrt(sum(float(grad.float().square().sum()) for grad in grads))

    @property
    def limit(self) -> float:
        return ROUNDING["fp8" if self.ready.routes.holds_fp8 else self.ready.device.dtype]


@contextlib.contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """The model in training mode with B off zero; weights, gradients, mode and random state as before afterwards."""
    import torch

    tuned = probe.ready.tuned
    training = tuned.training
    restore = fresh_copy(tuned, probe.changeable())
    try:
        with (
            torch.random.fork_rng(devices=[tuned.device] if tuned.device.type == "cuda" else []),
            parity.stirred(tuned),
        ):
            tuned.train()
            yield
    finally:
        restore()
        tuned.train(training)


def examine(ready: SetUp) -> list[Finding]:
    """Every gate of rows, settings and model. A gate that cannot be asked because another failed is left out."""
    found = [gate.finding(ready) for gate in gates.GATES]
    if any(f.level == REFUSE and f.gate in BEFORE_THE_MODEL for f in found):
        return found
    of_method = FULL_GATES if is_full(ready.tuned) else ADAPTER_GATES
    probe = Probe(ready)
    if ready.settings.start:
        found.append(_start(ready))
    if isinstance(probe.learned, Preference) and probe.learned.has_reference:
        found.append(_reference(ready, probe.learned))
    with probing(probe):
        for name, level, remedy, look in (*of_method, *MODEL_GATES):
            finding = judged(name, level, remedy, *look(probe))
            found.append(finding)
            if finding.level == REFUSE and name in LAST_WORDS:
                break
    return found


def refuse(findings: Sequence[Finding], model: str) -> None:
    """Raises: TrainingError with every refusal, its row and its remedy."""
    wrong = [f for f in findings if f.level == REFUSE]
    if wrong:
        told = "\n".join(f"  {f.gate}: {f.found}; {f.remedy}" for f in wrong)
        raise TrainingError(f"{model} would train on something else than it seems:\n{told}")


def _finite(probe: Probe) -> tuple[str, str]:
    value = probe.whole.loss
    return (
        ("", f"loss {value:.3f} on {len(probe.indices)} rows") if math.isfinite(value) else (f"the loss is {value}", "")
    )


def _models_own(probe: Probe) -> tuple[str, str]:
    """Against the loss that transformers computes from labels, -100 where none is borne."""
    import torch

    ready = probe.ready
    paths = [probe.shortest]  # every logit of it is computed
    batch = loss.on_device(loss.collate(paths, ready.tokenizer.pad_token_id), ready.tuned.device)
    labels = torch.full_like(batch["ids"], -100)
    for row, path in enumerate(paths):
        first = max(path.num_prompt_tokens, 1)
        labels[row, first : len(path.ids)] = batch["ids"][row, first : len(path.ids)]
    with torch.no_grad(), loss.precision(ready.device):
        theirs = float(ready.tuned(input_ids=batch["ids"], labels=labels, use_cache=False).loss)
        ours = float(loss.loss_sum(ready.tuned, batch, ready.path)) / loss.num_loss_tokens(paths)
    if abs(ours - theirs) > probe.limit / 2 * max(1.0, abs(theirs)):
        return f"the loss is {ours:.3f} an answer token, the model's own from labels {theirs:.3f}", ""
    return "", f"loss {ours:.3f} an answer token, the model's own {theirs:.3f}"


def _same_twice(probe: Probe) -> tuple[str, str]:
    apart = _apart(probe, probe.gradients([probe.indices])[1], probe.whole.gradient)
    if apart > probe.limit:
        return f"two passes over the same rows differ by {apart:.1%}: something random is on in training", ""
    return "", "two passes over the same rows agree"


def _apart(probe: Probe, one: Any, other: Any) -> float:
    """Difference of two gradients, relative to the second, or to what cancels in it."""
    norm = max(float(other.norm()), probe.uncancelled)
    return float((one - other).norm()) / norm if norm else math.inf


def _every_gradient(probe: Probe) -> tuple[str, str]:
    own, lacking = probe.trainable(), probe.whole.lacking
    if lacking:
        return f"{len(lacking)} of {len(own)} trained matrices get no gradient, first {lacking[0]}", ""
    return "", f"every one of {len(own)} trained matrices gets a gradient"


def _changes_logits(probe: Probe) -> tuple[str, str]:
    """What is trained takes part: an adapter off zero against none, or weights a little larger against as they are."""
    import torch

    ready = probe.ready
    asked = (ready.tuned, [probe.shortest], ready.tokenizer.pad_token_id, ready.device)
    with bare(ready.tuned):
        before = preflight.probe_logits(*asked)
    restore = fresh_copy(ready.tuned, probe.changeable())
    if is_full(ready.tuned):
        with torch.no_grad():
            for parameter in probe.changeable().values():
                parameter.mul_(WEIGHTS_STIRRED)
    try:
        effect = preflight.effect_on(before, preflight.probe_logits(*asked))
    except TrainingError:
        return "what is trained changes no logit", ""
    finally:
        restore()
    return "", f"what is trained moves logits, by {effect:.2g} at most"


def _accumulation(probe: Probe) -> tuple[str, str]:
    num = len(probe.indices)
    light, heavy = probe.indices[: num // 2], probe.indices[num // 2 :]
    apart = _apart(probe, probe.gradients([part for part in (light, heavy) if part])[1], probe.whole.gradient)
    if apart > probe.limit:
        return f"{num} rows in one micro-batch and in two give gradients {apart:.1%} apart", ""
    return "", f"{num} rows in one micro-batch or in two: gradients {apart:.1g} apart"


def _packing(probe: Probe) -> tuple[str, str]:
    ready = probe.ready
    if ready.packing.collate is padded:
        return "", f"{ready.packing.kind}: nothing is packed"
    apart = _apart(probe, probe.gradients([probe.indices], ready.packing.collate)[1], probe.whole.gradient)
    if apart > probe.limit:
        return f"{ready.packing.kind} and padded rows give gradients {apart:.1%} apart", ""
    return "", f"{ready.packing.kind}: gradients {apart:.1g} apart from padded rows"


def _checkpoint(probe: Probe) -> tuple[str, str]:
    """Two optimizer steps, against one, a save, everything overwritten, a load, and the other."""
    import torch

    ready, own = probe.ready, probe.changeable()
    whole, restore_weights = is_full(ready.tuned), fresh_copy(probe.ready.tuned, own)
    with tempfile.TemporaryDirectory(prefix="shoestring-check-") as place:
        folder, state = Path(place) / "weights", Path(place) / "optimizer.pt"

        def step(optimizer: Any) -> None:
            probe.gradients([probe.indices])
            optimizer.step()

        first = torch.optim.AdamW(own.values(), lr=1e-3)
        for name, grad in probe.whole.of_changeable.items():
            own[name].grad = grad
        first.step()
        full.save(own, folder) if whole else save_trained(ready.tuned, folder)
        torch.save(first.state_dict(), state)
        step(first)
        wanted = torch.cat([p.detach().flatten() for p in own.values()]).clone()
        for parameter in own.values():
            parameter.data.fill_(0.5)
        try:
            full.restore(own, folder) if whole else load_trained(ready.tuned, folder)
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            return f"what was saved cannot be loaded ({str(error).splitlines()[0][:120]})", ""
        again = torch.optim.AdamW(own.values(), lr=1e-3)
        again.load_state_dict(torch.load(state, weights_only=True))
        step(again)
        apart = float((torch.cat([p.detach().flatten() for p in own.values()]) - wanted).abs().max())
    restore_weights()
    limit = 0.0 if ready.device.kind == "cpu" else 1e-3
    if apart > limit:
        return f"a run continued from a checkpoint goes elsewhere: weights differ by {apart:.2g} after one step", ""
    return "", "continued from a checkpoint, the next step is the same"


def _reads_text(probe: Probe) -> tuple[str, str]:
    """Whether the bare base expects the rows' own order of tokens more than a shuffled one."""
    import random

    import torch

    ready, rng = probe.ready, random.Random(0)
    in_order = [path.ids for path in probe.first_sides]
    losses = []
    for rows in (in_order, [rng.sample(ids, len(ids)) for ids in in_order]):
        paths = [Encoded(ids, 1) for ids in rows]
        batch = loss.on_device(loss.collate(paths, ready.tokenizer.pad_token_id), ready.tuned.device)
        with torch.no_grad(), loss.precision(ready.device), bare(ready.tuned):
            losses.append(float(loss.loss_sum(ready.tuned, batch, ready.path)) / loss.num_loss_tokens(paths))
    if READS * losses[0] > losses[1]:
        return (
            f"its loss on these rows is {losses[0]:.2f} a token, on their tokens shuffled {losses[1]:.2f}",
            "",
        )
    return "", f"the base reads these rows: {losses[0]:.2f} a token, shuffled {losses[1]:.2f}"


def _reference(ready: SetUp, learned: Preference) -> Finding:
    """At the start nothing is preferred: a fresh adapter is the bare base, and another one its own reference."""
    name = "reference_is_the_start"
    with ready.scoring(), ready.at_reference():
        learned.prepare(ready.tuned, **ready.budget)
    with ready.scoring():
        value = learned.mean_loss(ready.tuned, **ready.budget)
    expected = learned.loss_at_start(range(len(learned.items)))
    if abs(value - expected) > ROUNDING[ready.device.dtype]:
        wrong = f"before the first step the preference loss is {value:.3f}, with nothing preferred it is {expected:.3f}"
        return Finding(name, REFUSE, wrong, "the reference is another model; tell us which model this is")
    return Finding(name, gates.OK, f"before the first step the preference loss is {value:.3f}: nothing is preferred")


def _start(ready: SetUp) -> Finding:
    """The adapter that training goes on from does something: names that nothing reads load without an error."""
    name = "starts_from_its_adapter"
    asked = (ready.tuned, ready.probed_paths, ready.tokenizer.pad_token_id, ready.device)
    with bare(ready.tuned):
        before = preflight.probe_logits(*asked)
    try:
        effect = preflight.effect_on(before, preflight.probe_logits(*asked))
    except TrainingError:
        wrong = f"the adapter of {ready.settings.start} changes no logit of this model"
        return Finding(name, REFUSE, wrong, "give train.start an adapter of this model")
    return Finding(name, gates.OK, f"the adapter of {ready.settings.start} moves logits, by {effect:.2g} at most")


# Where one of these fails, passes through the model say nothing new, or cannot be made.
BEFORE_THE_MODEL = ("answer_tokens_bear_loss", "tokens_have_embeddings")
LAST_WORDS = (
    "there_is_an_adapter",
    "every_weight_is_trained",
    "loss_is_finite",
    "every_matrix_learns",
    "adapter_changes_logits",
    "passes_agree",
)
ANOTHER = "choose another model, or method: lora"
ADAPTER_GATES = (
    (
        "there_is_an_adapter",
        REFUSE,
        "choose a model with linear layers that PEFT can adapt",
        weight_gates.only_adapters,
    ),
    ("base_is_not_upcast", REFUSE, "load the base in the device's 16-bit type", weight_gates.base_as_loaded),
)
FULL_GATES = (
    (
        "every_weight_is_trained",
        REFUSE,
        "report this with the model's name, or use method: lora",
        weight_gates.every_weight,
    ),
    (
        "weights_learn_in_float32",
        REFUSE,
        "report this with the model's name, or use method: lora",
        weight_gates.in_float32,
    ),
)
MODEL_GATES = (
    ("loss_is_finite", REFUSE, "the weights are damaged or overflow: download them again, or use bfloat16", _finite),
    ("loss_is_the_models_own", REFUSE, "report this with the model's name: loss and model disagree", _models_own),
    ("adapter_changes_logits", REFUSE, ANOTHER, _changes_logits),
    ("every_matrix_learns", REFUSE, ANOTHER, _every_gradient),
    ("passes_agree", REFUSE, "switch dropout off in the model's config.json", _same_twice),
    (
        "accumulation_changes_nothing",
        REFUSE,
        "report this with the model's name: the loss must not depend on the cut",
        _accumulation,
    ),
    ("packing_changes_nothing", REFUSE, "report this with the model's name; padded rows are correct", _packing),
    ("checkpoints_continue", REFUSE, "report this with the model's name and the versions in meta.json", _checkpoint),
    ("base_reads_the_rows", WARN, "is this the tokenizer of this model, and the model trained at all?", _reads_text),
)
