"""Plant failures that a training run would not notice, and see which gate names each; sane set-ups must pass.

    python -m bench.silent_failures [--model shoestring-1m] [--json]

A plant alters one thing in a working set-up: the rows' tokens, the tokenizer, the model, or a function that training
calls. It counts as caught where the gate named here refuses, or warns where a warning is all that can be said. A
sane set-up is a false alarm where any gate refuses or warns.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from bench import machine, versions
from shoestring.messages import Example, Message
from shoestring.records import Device, TrainSettings
from shoestring.train import loss, preference, probe
from shoestring.train.gates import OK, Finding
from shoestring.train.setup import SetUp, set_up
from shoestring.train.tokens import Encoded, end_token_id

NUM_ROWS = 160
SYSTEM = "You sort a shop's mail. Read the message and answer with the name of the desk that should have it. " * 4
DESKS = ("billing", "delivery", "returns", "technical support")
Planted = Callable[[SetUp], "contextlib.AbstractContextManager[Any] | None"]


def settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "method": "lora", "lora_rank": 8, "lora_alpha": 16, "learning_rate": 3e-3, "num_epochs": 3,
        "batch_tokens": 1024, "micro_batch_tokens": 1024, "seq_len": 512, "warmup_frac": 0.05, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "num_evals": 1, "patience": 1, "num_threads": 1, "seed": 0, "max_new_tokens": 8,
        "reasons": {},
    }  # fmt: skip
    return TrainSettings(**{**values, **changes})


def examples(
    system: str = "", pairs: bool = False, turns: int = 1, long: int = 1, marked: bool = False
) -> list[Example]:
    """Messages to a shop, each with the desk it goes to; marked: every third with another desk, as undesired."""
    made = []
    for i in range(NUM_ROWS):
        desk = DESKS[i % len(DESKS)]
        head = [Message("system", system)] if system else []
        for turn in range(turns - 1):
            head += [Message("user", f"Hello, this is order {i + turn}."), Message("assistant", "How can I help?")]
        asked = f"Order {1000 + 7 * i} " + f"went wrong, the {desk} desk should look at it please. " * long
        answer = desk if i % 3 else f"{desk}, since the customer of order {1000 + 7 * i} asks for it by name"
        messages = (*head, Message("user", asked), Message("assistant", answer))
        other = Message("assistant", DESKS[(i + 1) % len(DESKS)])
        flag = bool(i % 3) if marked else None
        messages = (*messages[:-1], other) if flag is False else messages
        made.append(
            Example(
                messages, (len(messages) - 1, len(messages)), "mail", i + 1, rejected=(other,) if pairs else (),
                desired=flag,
            )
        )  # fmt: skip
    return made


SANE: dict[str, dict[str, Any]] = {
    "supervised, bfloat16": {},
    "supervised, float32": {"dtype": "float32"},
    "one system prompt over all rows": {"rows": {"system": SYSTEM}},
    "several turns": {"rows": {"turns": 3}},
    "long rows": {"rows": {"long": 10}},
    "preferences": {"rows": {"pairs": True}, "objective": "dpo", "learning_rate": 1e-4},
    "preferences under a system prompt": {
        "rows": {"pairs": True, "system": SYSTEM}, "objective": "dpo", "learning_rate": 1e-4,
    },
    "odds ratio preferences": {"rows": {"pairs": True}, "objective": "orpo", "learning_rate": 1e-3},
    "marked answers": {"rows": {"marked": True}, "objective": "kto", "learning_rate": 1e-4},
    "marked answers under a system prompt": {
        "rows": {"marked": True, "system": SYSTEM}, "objective": "kto", "learning_rate": 1e-4,
    },
    "NF4 base": {"method": "qlora"},
    "NF4 base, float32, shared prompt": {"method": "qlora", "dtype": "float32", "rows": {"system": SYSTEM}},
    "small micro-batches": {"micro_batch_tokens": 128},
    "high rank": {"lora_rank": 64, "lora_alpha": 128},
}  # fmt: skip


# ---------------------------------------------------------------- plants


def on_rows(change: Callable[[Encoded, Any], Encoded], share: int = 5) -> Planted:
    """Every share-th row's tokens altered, as a faulty collator or template would."""

    def plant(ready: SetUp) -> None:
        items = list(ready.learned.items)
        for index in range(0, len(items), share):
            items[index] = tuple(change(path, ready.tokenizer) for path in items[index])
        ready.learned.items = items

    return plant


def patched(place: Any, name: str, value: Any) -> Planted:
    return lambda ready: mock.patch.object(place, name, value)


def first_linear(ready: SetUp) -> Any:
    return next(m for m in ready.tuned.modules() if hasattr(m, "lora_A"))


def generation_end(ready: SetUp) -> None:
    ready.tokenizer.eos_token = ready.tokenizer.pad_token
    ready.tuned.get_base_model().generation_config.eos_token_id = ready.tokenizer.pad_token_id


def another_pad(ready: SetUp) -> None:
    ready.tokenizer.pad_token_id = end_token_id(ready.tokenizer)


def dated_template(ready: SetUp) -> None:
    ready.tokenizer.chat_template = "{# strftime_now('%d %B') #}" + ready.tokenizer.chat_template


def smaller_embedding(ready: SetUp) -> None:
    embedding = ready.tuned.get_input_embeddings()
    embedding.weight.data = embedding.weight.data[:300]


def permuted_tokenizer(ready: SetUp) -> None:
    """The tokenizer of another model of the same size: each number means another text than the model learned."""
    import torch

    weight = ready.tuned.get_input_embeddings().weight
    weight.data = weight.data[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))]


def fewer_steps(ready: SetUp) -> None:
    schedule = dataclasses.replace(ready.packing.schedule, steps=ready.packing.schedule.steps[:4])
    object.__setattr__(ready, "packing", dataclasses.replace(ready.packing, schedule=schedule))


def rate(value: float) -> Planted:
    def plant(ready: SetUp) -> None:
        object.__setattr__(ready, "settings", dataclasses.replace(ready.settings, learning_rate=value))

    return plant


def frozen_matrix(ready: SetUp) -> None:
    first_linear(ready).lora_B["default"].weight.requires_grad_(False)


def trained_norm(ready: SetUp) -> None:
    next(p for n, p in ready.tuned.named_parameters() if "norm" in n).requires_grad_(True)


def upcast_base(ready: SetUp) -> None:
    layer = first_linear(ready).base_layer
    layer.weight.data = layer.weight.data.float()


def broken_weight(ready: SetUp) -> None:
    first_linear(ready).base_layer.weight.data[0, 0] = float("nan")


def dropout(ready: SetUp) -> None:
    for module in ready.tuned.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3


def cut_graph(ready: SetUp) -> Any:
    """What reentrant gradient checkpointing does without enable_input_require_grads: the lower layers learn nothing."""
    layer = ready.tuned.get_base_model().model.layers[1]
    whole = layer.forward
    return mock.patch.object(layer, "forward", lambda hidden, *a, **k: whole(hidden.detach(), *a, **k))


def idle_adapter(ready: SetUp) -> None:
    for module in ready.tuned.modules():
        if hasattr(module, "lora_A"):
            module._disable_adapters = True


def mean_of_means(ready: SetUp) -> Any:
    """The accumulation fault of transformers before 4.46: every micro-batch weighs the same, however long."""

    def step_loss(learned: Any, model: Any, batch: Any, weight: int, path: str, device: Device) -> Any:
        with loss.precision(device):
            return learned.loss_sum(model, batch, path) / max(1.0, float(batch["counts"].sum()))

    return mock.patch.object(probe, "step_loss", step_loss)


def leaking_packing(ready: SetUp) -> Any:
    """Rows packed without a mask between them: each sees all before it."""
    return altered_forest(ready, lambda made: [setattr_places(made, "subtree_ends", len(made.ids))])


def running_positions(ready: SetUp) -> Any:
    """Positions that run on from row to row."""
    return altered_forest(ready, lambda made: [setattr_places(made, "positions", None)])


def setattr_places(made: Any, name: str, value: int | None) -> None:
    array = getattr(made, name)
    array[:] = range(len(array)) if value is None else value


def altered_forest(ready: SetUp, alter: Callable[[Any], Any]) -> Any:
    whole = loss.plant

    def plant(paths: Any, pad_id: int) -> Any:
        made = whole(paths, pad_id)
        alter(made)
        return made

    return mock.patch.object(loss, "plant", plant)


def shifted_targets(ready: SetUp) -> Any:
    """Labels one place off: each token learns to repeat itself."""
    whole = loss._targets

    def targets(paths: Any, places: Any, rounded: bool) -> Any:
        return whole(paths, [place + 1 for place in places], rounded)

    return mock.patch.object(loss, "_targets", targets)


def adapter_of_another_prefix(ready: SetUp) -> Any:
    """Weights saved under names that nothing reads: they load without an error, and do nothing."""
    from safetensors.torch import load_file, save_file

    whole = probe.save_trained

    def save(tuned: Any, folder: Any) -> None:
        whole(tuned, folder)
        file = folder / "adapter_model.safetensors"
        save_file({k.replace("model.layers", "layers"): v for k, v in load_file(file).items()}, file)

    return mock.patch.object(probe, "save_trained", save)


def another_reference(ready: SetUp) -> Any:
    """Preferences measured against another model than the base."""
    whole = preference.Preference.prepare

    def prepare(self: Any, model: Any, **options: Any) -> None:
        whole(self, model, **options)
        self.reference[1::2] += 40.0

    return mock.patch.object(preference.Preference, "prepare", prepare)


def lost_optimizer(ready: SetUp) -> Any:
    """A checkpoint whose optimizer state is not read back."""
    import torch

    whole = torch.load

    def load(*arguments: Any, **options: Any) -> Any:
        return {**whole(*arguments, **options), "state": {}}

    return mock.patch.object(torch, "load", load)


def drop_end(path: Encoded, tokenizer: Any) -> Encoded:
    return Encoded(path.ids[:-1], path.num_prompt_tokens)


def end_early(path: Encoded, tokenizer: Any) -> Encoded:
    middle = path.num_prompt_tokens + 1
    return Encoded([*path.ids[:middle], path.ids[-1], *path.ids[middle:]], path.num_prompt_tokens)


def cut_answer(path: Encoded, tokenizer: Any) -> Encoded:
    return Encoded([*path.ids[: path.num_prompt_tokens + 1], path.ids[-1]], path.num_prompt_tokens)


def repeated(path: Encoded, tokenizer: Any) -> Encoded:
    return Encoded([*path.ids[:-1], *path.ids[1:-1] * 40, path.ids[-1]], path.num_prompt_tokens)


def double_start(path: Encoded, tokenizer: Any) -> Encoded:
    start = [tokenizer.bos_token_id] * 2
    return Encoded([*start, *(i for i in path.ids if i != start[0])], path.num_prompt_tokens + 1)


def without_start(ready: SetUp) -> Any:
    whole = ready.tokenizer
    start = whole.bos_token_id

    class AddsStart(type(whole)):  # type: ignore[misc]
        def __call__(self, text: Any, *arguments: Any, **options: Any) -> Any:
            made = super().__call__(text, *arguments, **options)
            if options.get("add_special_tokens", True):
                made["input_ids"] = [start, *made["input_ids"]]
            return made

    tokenizer = copy.copy(whole)
    tokenizer.__class__ = AddsStart
    object.__setattr__(ready, "tokenizer", tokenizer)
    on_rows(lambda p, t: Encoded([i for i in p.ids if i != start], p.num_prompt_tokens - p.ids.count(start)), 1)(ready)


def same_sides(ready: SetUp) -> None:
    items = list(ready.learned.items)
    items[3] = (items[3][0], items[3][0])
    ready.learned.items = items


def marked_twice(ready: SetUp) -> None:
    """One answer to one prompt, in one row as desired and in another as not."""
    items = list(ready.learned.items)
    items[4] = items[3]
    ready.learned.items = items


SHARED: dict[str, Any] = {"rows": {"system": SYSTEM}}
MARKED: dict[str, Any] = {"rows": {"marked": True}, "objective": "kto", "learning_rate": 1e-4}
PAIRS: dict[str, Any] = {"rows": {"pairs": True}, "objective": "dpo", "learning_rate": 1e-4}
# name -> (gate that must name it, plant, set-up)
PLANTS: dict[str, tuple[str, Planted, dict[str, Any]]] = {
    "mask all zero": ("answer_tokens_bear_loss", on_rows(lambda p, t: Encoded(p.ids, len(p.ids))), {}),
    "loss on the prompt": ("prompt_bears_no_loss", on_rows(lambda p, t: Encoded(p.ids, 0), 1), {}),
    "answers without end token": ("end_is_learned", on_rows(drop_end), {}),
    "end token inside answers": ("end_only_at_the_end", on_rows(end_early), {}),
    "truncated answers": ("answers_are_whole", on_rows(cut_answer), {}),
    "doubled start token": ("one_start_token", on_rows(double_start, 1), {}),
    "start token missing": ("start_token_is_there", without_start, {}),
    "prompt trained otherwise than served": (
        "prompts_as_served", on_rows(lambda p, t: Encoded([p.ids[0], 40, *p.ids[1:]], p.num_prompt_tokens + 1)), {},
    ),
    "pad is the end token": ("pad_is_not_end", another_pad, {}),
    "server does not know the end token": ("servers_stop_there", generation_end, {}),
    "date in the template": ("template_is_fixed", dated_template, {}),
    "tokens outside the embedding": ("tokens_have_embeddings", smaller_embedding, {}),
    "tokenizer of another model": ("base_reads_the_rows", permuted_tokenizer, {}),
    "rows longer than seq_len": ("rows_fit", on_rows(repeated), {}),
    "learning rate a thousand times too high": ("learning_rate_is_sane", rate(0.9), {}),
    "learning rate that moves nothing": ("learning_rate_is_sane", rate(1e-8), {}),
    "four optimizer steps": ("enough_steps", fewer_steps, {}),
    "pairs of the same answer": ("sides_differ", same_sides, PAIRS),
    "reference is another model": ("reference_is_the_start", another_reference, PAIRS),
    "an answer marked both ways": ("sides_differ", marked_twice, MARKED),
    "an adapter matrix frozen": ("there_is_an_adapter", frozen_matrix, {}),
    "a base weight trained": ("there_is_an_adapter", trained_norm, {}),
    "base upcast to float32": ("base_is_not_upcast", upcast_base, {}),
    "a weight is not a number": ("loss_is_finite", broken_weight, {}),
    "targets one place off": ("loss_is_the_models_own", shifted_targets, {}),
    "dropout left on": ("passes_agree", dropout, {}),
    "gradient stops at a layer": ("every_matrix_learns", cut_graph, {}),
    "adapter ignored": ("adapter_changes_logits", idle_adapter, {}),
    "mean of micro-batch means": ("accumulation_changes_nothing", mean_of_means, {}),
    "packed rows see each other": ("packing_changes_nothing", leaking_packing, SHARED),
    "positions run on in a pack": ("packing_changes_nothing", running_positions, SHARED),
    "adapter saved under another prefix": ("checkpoints_continue", adapter_of_another_prefix, {}),
    "optimizer state lost": ("checkpoints_continue", lost_optimizer, {}),
}  # fmt: skip


# ---------------------------------------------------------------- running


@contextlib.contextmanager
def made(model: str, rows: dict[str, Any] | None = None, dtype: str = "bfloat16", **changes: Any) -> Iterator[SetUp]:
    train = examples(**(rows or {}))
    device = Device("cpu", "cpu", 2**33, 1, dtype, "")
    with set_up(model, train, train[:4], settings(**changes), device) as ready:
        yield ready


def planted(model: str, plant: Planted, options: dict[str, Any]) -> list[Finding]:
    with made(model, **options) as ready, plant(ready) or contextlib.nullcontext():
        return probe.examine(ready)


def measure(model: str) -> dict[str, Any]:
    alarms: dict[str, list[str]] = {}
    times_s = []
    for name, options in SANE.items():
        with made(model, **options) as ready:
            started = time.monotonic()
            found = probe.examine(ready)
            times_s.append(time.monotonic() - started)
        if wrong := [f"{f.gate}: {f.found}" for f in found if f.level != OK]:
            alarms[name] = wrong
    missed: dict[str, list[str]] = {}
    told: dict[str, str] = {}
    for name, (gate, plant, options) in PLANTS.items():
        found = planted(model, plant, options)
        words = [f"{f.level}: {f.found}" for f in found if f.gate == gate and f.level != OK]
        if words:
            told[name] = f"{gate}: {words[0]}"
        else:
            missed[name] = [f"{f.gate}: {f.found}" for f in found if f.level != OK]
    return {
        "measured": f"planted silent failures named by their gate, and alarms on sane set-ups, {model}",
        "planted": len(PLANTS),
        "caught": len(told),
        "sane": len(SANE),
        "false_alarms": len(alarms),
        "examine_s": {"mean": sum(times_s) / len(times_s), "max": max(times_s)},
        "caught_by": told,
        "missed": missed,
        "alarms": alarms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    result = {**measure(options.model), "versions": versions(), "machine": machine()}
    if options.json:
        print(json.dumps(result))
        return
    for name, words in result["caught_by"].items():
        print(f"{name:42} {words[:160]}")
    for name, others in result["missed"].items():
        print(f"MISSED {name}: {others}")
    for name, others in result["alarms"].items():
        print(f"FALSE ALARM {name}: {others}")
    seconds = result["examine_s"]["mean"]
    print(f"{result['caught']} of {result['planted']} plants named by their gate; {seconds:.1f} s a set-up")
    print(f"{result['false_alarms']} false alarms on {result['sane']} sane set-ups")


if __name__ == "__main__":
    main()
