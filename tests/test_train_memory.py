"""train/memory_policy.py: what is measured, what is chosen of it, and going on after memory ran out."""

import pytest
import torch

from shoestring.errors import DoesNotFit
from shoestring.records import Device
from shoestring.train import fp8, fused, loss, memory_policy, packing, routes, trainer
from shoestring.train.base import load_base, load_tokenizer
from shoestring.train.loop import StepItems, build_trainer
from shoestring.train.memory_policy import Candidate, Measured, choose, counting_kept, measure, offloading, recompute
from shoestring.train.preference import objective
from tests.test_train_fp8 import by_rows
from tests.test_train_fused import tuned_and_loss
from tests.test_train_trainer import EXACT, HALF, adapter_bytes, additions, recorded, rung, settings, tiny  # noqa: F401

MEASURED = Measured(num_layers=4, kept=1000.0, kept_recomputed=200.0)  # a layer keeps 200 a token


def chosen(monkeypatch, room: float, kind: str = "cpu", **asked) -> memory_policy.MemoryPolicy:
    """Of a model without parameters in so many free bytes."""
    monkeypatch.setattr(memory_policy, "free_bytes", lambda device: int(room / memory_policy.FIT_FRAC) + 1)
    device = Device(kind, "box", 2**40, 1, "bfloat16", "")
    sizes = {"largest_tokens": 1000, "longest_tokens": 100, **asked}
    return choose(torch.nn.Module(), device, measured=MEASURED, **sizes)


# ---------------------------------------------------------------- measured


def test_kept_bytes_are_counted_once_and_without_parameters():
    linear = torch.nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8, requires_grad=True)
    with counting_kept(linear) as kept:
        hidden = linear(x)  # keeps x
        out = hidden.sigmoid()  # keeps its own output
        (out * out).sum()  # which is kept once
    assert kept() == x.nbytes + out.nbytes


def test_recomputed_layers_keep_only_their_input_and_the_gradients_stay(tiny):  # noqa: F811
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    found = measure(tuned, of_rows, 1)
    assert found.num_layers == 2 and 0 < found.kept_recomputed < 0.4 * found.kept and found.peak is None
    gradients = []
    for num, offload in ((0, False), (1, False), (2, False), (0, True)):
        recompute(tuned, num)
        tuned.zero_grad()
        with counting_kept(tuned) as kept:
            if offload:
                with offloading(True):
                    total = of_rows()
            else:
                total = of_rows()
        if not offload:
            # What a layer keeps is measured; one that recomputes keeps its input instead.
            assert kept() == pytest.approx(found.kept - found.one_layer * num, rel=0.05)
        total.backward()
        gradients.append([p.grad.clone() for p in tuned.parameters() if p.requires_grad])
    for other in gradients[1:]:
        for one, same in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6, atol=1e-7)
    tuned.eval()
    with torch.no_grad():
        of_rows()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_nothing_frozen_is_raised_to_float32(tiny, tmp_path, method):  # noqa: F811
    """Neither by loading nor by a training step; stock preparation of quantised models raises norms and head."""
    model = load_base(tiny, device=HALF, quantise=method == "qlora")
    before = {name: (p.dtype, p.nbytes) for name, p in model.named_parameters()}
    assert torch.float32 not in {dtype for dtype, _ in before.values()}
    tuned, of_rows = tuned_and_loss(tiny, HALF, method)
    fused.choose_adapters(tuned, of_rows, "bfloat16")
    of_rows().backward()
    frozen = {n: (p.dtype, p.nbytes) for n, p in tuned.named_parameters() if not p.requires_grad}
    assert sorted(before.values(), key=str) == sorted(frozen.values(), key=str)


# ---------------------------------------------------------------- chosen


def test_with_room_the_whole_batch_runs_at_once(monkeypatch):
    policy = chosen(monkeypatch, 1e9)
    assert policy.chosen.kept() == {"micro_batch_tokens": 1000, "num_recomputed": 0, "offload": False}
    assert "no larger pass is made, and nothing needs recomputing" in policy.reason


def test_without_a_clock_the_least_recomputation_that_fits_wins(monkeypatch):
    factor = memory_policy.VARYING_FACTOR["cpu"][2]
    full, recomputed = (MEASURED.bytes_per_token(num) * factor for num in (0, 4))
    policy = chosen(monkeypatch, 500 * full)
    assert policy.chosen.kept() == {"micro_batch_tokens": 500, "num_recomputed": 0, "offload": False}
    assert len(policy.candidates) == 4  # 1000 with layers recomputed, 500, 250, 125 and 100 less the one that is over
    # One row does not fit in full: as few layers as it takes.
    policy = chosen(monkeypatch, 100 * (full + recomputed) / 2)
    assert policy.chosen.micro_batch_tokens == 100 and 0 < policy.chosen.num_recomputed < 4
    fixed = chosen(monkeypatch, 1e9, largest_tokens=300, may_cut=False, num_recomputed=3)
    assert fixed.chosen.kept() == {"micro_batch_tokens": 300, "num_recomputed": 3, "offload": False}


def test_with_a_clock_the_fastest_wins(monkeypatch):
    factor = memory_policy.VARYING_FACTOR["cpu"][2]
    room = 500 * MEASURED.bytes_per_token(0) * factor

    def clock(candidate: Candidate) -> float:
        return 200.0 if candidate.micro_batch_tokens == 250 else 100.0

    policy = chosen(monkeypatch, room, tokens_per_s=clock)
    assert policy.chosen.micro_batch_tokens == 250 and "200 tokens/s, the most of 3 measured" in policy.reason
    almost = chosen(monkeypatch, room, tokens_per_s=lambda c: 101.0 if c.micro_batch_tokens == 250 else 100.0)
    assert almost.chosen.micro_batch_tokens == 500


def test_tight_is_tried_and_more_than_there_is_refused(monkeypatch):
    low = 100 * MEASURED.bytes_per_token(4) * memory_policy.VARYING_FACTOR["cpu"][0]
    policy = chosen(monkeypatch, low * 1.01)
    assert (policy.chosen.micro_batch_tokens, policy.chosen.num_recomputed) == (100, 4)
    with pytest.raises(DoesNotFit, match=r"a pass of 100 tokens with 4 layers recomputed needs .* are free on box"):
        chosen(monkeypatch, low * 0.9)
    assert chosen(monkeypatch, low * 0.9, "cuda").chosen.offload


def test_smaller_halves_then_recomputes_then_gives_up(monkeypatch):
    policy = chosen(monkeypatch, 1e9, largest_tokens=300)
    seen = []
    while policy is not None:
        seen.append((policy.chosen.micro_batch_tokens, policy.chosen.num_recomputed))
        policy = policy.smaller()
    assert seen == [(300, 0), (150, 0), (100, 0), (100, 4)]


def test_out_of_memory_is_told_from_other_faults():
    assert memory_policy.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory_policy.is_out_of_memory(raised.value)
    assert not memory_policy.is_out_of_memory(RuntimeError("size mismatch"))


# ---------------------------------------------------------------- whole runs


def test_cut_steps_have_the_same_gradients(tiny, tmp_path):  # noqa: F811
    from transformers import TrainerCallback

    rows, asked = additions(24, 95), settings(micro_batch_tokens=512)
    learned = objective(load_tokenizer(tiny), rows, asked, "training")
    tuned, _ = tuned_and_loss(tiny, EXACT)
    whole = packing.choose_packing(learned, rows, asked, tuned, loss.CHUNKED, EXACT)
    cut = whole.within(128)
    assert whole.within(512) is whole
    assert max(whole.size(batch) for step in cut.schedule.steps for batch in step) <= 128
    for one, other in zip(whole.schedule.steps, cut.schedule.steps, strict=True):
        assert sorted(row for batch in one for row in batch) == sorted(row for batch in other for row in batch)
    assert cut.within(512).schedule == whole.schedule
    found = []
    for made in (whole, cut):
        items = StepItems(learned, made.schedule, made.collate)
        trainer = build_trainer(tuned, items, asked, EXACT, tmp_path, TrainerCallback(), loss.CHUNKED)
        tuned.zero_grad()
        total = trainer.training_step(tuned, items[0])
        found.append((float(total), [p.grad.clone() for p in tuned.parameters() if p.requires_grad]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_call", [3, 9])
def test_out_of_memory_shrinks_and_goes_on(rung, monkeypatch, at_call):  # noqa: F811
    """Injected into a pass of a real run: before the first checkpoint, and after an evaluation made one."""
    rung("whole", device=EXACT)
    monkeypatch.setattr(trainer, "examine", lambda ready: [])  # whose passes come before
    calls = {"n": 0}
    passes = loss.target_losses

    def full(model, batch, path):
        if torch.is_grad_enabled() and model.training:
            calls["n"] += 1
            if calls["n"] == at_call + 2:  # the first two are the policy's probe
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return passes(model, batch, path)

    monkeypatch.setattr(loss, "target_losses", full)
    result = rung("shrunk", device=EXACT)
    used = result.settings
    assert used["micro_batch_tokens"] == 128 and used["memory_policy"]["num_shrunk"] == 1
    (line,) = [text for text in rung.lines if "memory ran out" in text]
    assert "at 256 tokens a pass, nothing recomputed" in line and "with 128 tokens a pass" in line
    assert "memory ran out at 256 tokens" in used["memory_policy"]["reason"]
    assert recorded(rung.folder / "shrunk") == list(range(1, result.num_steps + 1))
    from safetensors.torch import load_file

    weights = [load_file(rung.folder / name / "adapter/adapter_model.safetensors") for name in ("whole", "shrunk")]
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-2, atol=1e-3)


def test_out_of_memory_in_the_smallest_pass_is_named(rung, monkeypatch):  # noqa: F811
    def full(model, batch, path):
        calls["n"] += torch.is_grad_enabled() and model.training
        if calls["n"] > 2:  # the policy's probe passes
            raise torch.OutOfMemoryError("CUDA out of memory")
        return passes(model, batch, path)

    monkeypatch.setattr(trainer, "examine", lambda ready: [])
    calls, passes = {"n": 0}, loss.target_losses
    monkeypatch.setattr(loss, "target_losses", full)
    with pytest.raises(DoesNotFit, match="the last checkpoint is kept"):
        rung(num_rows=8, seq_len=64)
    assert len(rung.lines) > 2 and "2 layers recomputed" in rung.lines[-1]


def test_a_micro_batch_of_more_than_the_whole_batch_asks_for_no_more_memory(rung):  # noqa: F811
    used = rung(num_rows=32, dev_rows=0, micro_batch_tokens=2**40).settings
    assert used["micro_batch_tokens"] == 2**40 and "no larger pass is made" in used["memory_policy"]["reason"]


ROUTES = {
    "fused": ({}, {"adapters": fused.FUSED, "base_format": "bfloat16", "recompute": "0 of 2 layers", "offload": False}),
    "float32": ({"device": EXACT}, {"adapters": fused.FUSED, "base_format": "float32"}),
    "nf4": ({"method": "qlora"}, {"adapters": fused.FUSED, "base_format": routes.NF4}),
    "recompute": ({"recompute": 1}, {"recompute": "1 of 2 layers", "adapters": fused.FUSED}),
    "fp8": ({"fp8": True}, {"base_format": routes.FP8, "adapters": fused.FUSED}),
    "fp8 refused": ({"fp8": True}, {"base_format": "bfloat16", "adapters": fused.FUSED}),
    "peft": ({}, {"adapters": fused.PEFT, "base_format": "bfloat16"}),
}


@pytest.mark.parametrize("route", [pytest.param(one, marks=by_rows) if "fp8" in one else one for one in ROUTES])
def test_the_record_says_what_was_on(rung, monkeypatch, route):  # noqa: F811
    changes, expected = ROUTES[route]
    if route.startswith("fp8"):
        monkeypatch.setattr(fp8, "cannot_run", lambda device: "")  # torch's CPU products stand in for the card's
    if route == "fp8 refused":
        monkeypatch.setattr(fp8, "LARGEST", 2**-8)  # leaves two numbers besides zero
    if route == "peft":
        monkeypatch.setattr(fused.Plain, "add_input_gradient", lambda self, grad, into: None)
    result = rung(num_rows=32, dev_rows=0, **changes)
    used = result.settings
    assert {key: used[key] for key in expected} == expected
    assert used["packing"] == packing.FOREST and used["sharing_factor"] > 1 and "prefix forest" in used["attention"]
    assert used["loss_path"] == loss.CHUNKED and used["compile"] == "off"
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    reasons = {
        "peft": "gradient of", "fp8 refused": "differs by", "fused": "14 layers, 4 groups",
    }  # fmt: skip
    said = used["base_reason"] if route.startswith("fp8") else used["adapters_reason"]
    assert reasons.get(route, "") in said
    assert used["memory_policy"]["reason"] and used["micro_batch_tokens"] == 256
    if route == "fused":
        assert used["base_reason"] == "fp8 is off: train.fp8 is false"
        assert used["memory_policy"]["measured"]["num_layers"] == 2


def test_a_run_continues_with_the_passes_it_began_with(rung, monkeypatch):  # noqa: F811
    rung("whole", dev_rows=0)

    def stop(wall_s):
        from shoestring.errors import BudgetStopped

        return BudgetStopped("spent")

    from shoestring.errors import BudgetStopped

    with pytest.raises(BudgetStopped):
        rung("parts", dev_rows=0, stop=stop)
    monkeypatch.setattr(routes.memory_policy, "choose", None)  # would choose anew
    result = rung("parts", dev_rows=0)
    assert result.settings["memory_policy"]["reason"].startswith("as the checkpoint was made")
    assert adapter_bytes(rung.folder / "parts") == adapter_bytes(rung.folder / "whole")
