"""train/fused.py: one product for layers on one input, and PEFT's numbers."""

import contextlib

import pytest
import torch

from shoestring.errors import TrainingError
from shoestring.records import Device
from shoestring.train import fused, loss, memory_policy, parity
from shoestring.train.adapter import build_adapter
from shoestring.train.base import load_tokenizer, quiet_loading
from shoestring.train.loop import save_trained
from shoestring.train.tokens import encode_example
from tests.test_train_trainer import EXACT, HALF, additions, settings
from tests.tiny import make_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def tuned_and_loss(tiny, device: Device, method: str = "lora"):
    """A model whose B are not zero, and the loss of a few rows under it."""
    tokenizer = load_tokenizer(tiny)
    batch = loss.collate([encode_example(tokenizer, e) for e in additions(5, 8)], tokenizer.pad_token_id)
    tuned = build_adapter(tiny, settings(method=method), device).train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.05, generator=generator)

    def of_rows():
        with loss.precision(device):
            return loss.loss_sum(tuned, batch)

    return tuned, of_rows


def fuse(tuned, of_rows) -> dict:
    def probe():
        with torch.no_grad():
            of_rows()

    return fused.fuse_adapters(tuned, probe)


def bare_loss(tuned, of_rows) -> float:
    with torch.no_grad(), tuned.disable_adapter():
        return float(of_rows())


@pytest.mark.parametrize(("device", "method"), [(EXACT, "lora"), (HALF, "lora"), (HALF, "qlora"), (EXACT, "qlora")])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_numbers_are_pefts(tiny, device, method, recompute):
    tuned, of_rows = tuned_and_loss(tiny, device, method)
    bare, theirs = bare_loss(tuned, of_rows), parity.measure(tuned, of_rows)
    assert fuse(tuned, of_rows) == {"num_layers": 14, "num_groups": 4, "num_left": 0}
    memory_policy.recompute(tuned, 2 if recompute else 0)
    ours = parity.measure(tuned, of_rows)
    assert len(ours.gradients) == 28 and tuned.shoestring_slot.outputs == ()
    if device is EXACT:
        assert max(parity.difference(theirs, ours)[:2]) < 1e-5
    assert parity.fault(theirs, ours, device.dtype) is None
    assert ours.loss != bare == bare_loss(tuned, of_rows)
    tuned.eval()
    with torch.no_grad():
        assert float(of_rows()) == pytest.approx(ours.loss, rel=1e-6 if device is EXACT else 1e-2)


def test_generation_and_the_saved_adapter_are_pefts(tiny, tmp_path):
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    ids = torch.tensor([[5, 6, 7]])

    def answer():
        return tuned.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False).tolist()

    first = answer()
    save_trained(tuned, tmp_path / "theirs")
    fuse(tuned, of_rows)
    assert answer() == first
    save_trained(tuned, tmp_path / "ours")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_what_it_does_not_know_stays_with_peft(tiny):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def loss_of(**changes):
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
        with quiet_loading():
            tuned = get_peft_model(base, config)
        ids = torch.tensor([[5, 6, 7, 8]])
        return tuned, lambda: tuned(input_ids=ids, labels=ids).loss

    for changes, why in (({"use_dora": True}, "DoRA"), ({"lora_dropout": 0.1}, "no layer is a plain LoRA layer")):
        tuned, of_rows = loss_of(**changes)
        with torch.random.fork_rng():
            chosen, reason = fused.choose_adapters(tuned, of_rows, "float32")
        assert chosen == fused.PEFT and reason.startswith("fused adapters are off: " + why)
        assert not any("forward" in vars(layer) for layer in fused.lora_layers(tuned))
    tuned, of_rows = loss_of()
    tuned.add_adapter("other", tuned.peft_config["default"])
    tuned.base_model.set_adapter(["default", "other"])
    with pytest.raises(TrainingError, match="one active adapter"):
        fuse(tuned, of_rows)


def test_the_gate_lets_a_wrong_product_not_pass(tiny, monkeypatch):
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    before = {n: p.clone() for n, p in tuned.named_parameters()}
    chosen, reason = fused.choose_adapters(tuned, of_rows, "float32")
    assert (chosen, reason) == (fused.FUSED, "14 layers, 4 groups on one input each; as PEFT's")
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in tuned.named_parameters())
    fused.unfuse_adapters(tuned)
    monkeypatch.setattr(fused.Plain, "add_input_gradient", lambda self, grad, into: None)
    chosen, reason = fused.choose_adapters(tuned, of_rows, "float32")
    assert chosen == fused.PEFT and "gradient of" in reason and "limit 0.001" in reason
    assert not any("forward" in vars(layer) for layer in fused.lora_layers(tuned))


def test_a_pass_that_breaks_off_leaves_nothing_wrong_behind(tiny):
    """The slot holds outputs of q, k, v when a pass fails between them; the next pass does not use them."""
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    fuse(tuned, of_rows)
    whole = float(of_rows().detach())
    key = next(layer for name, layer in tuned.named_modules() if name.endswith("k_proj"))

    def refuse(module, args):
        raise torch.OutOfMemoryError("no room")

    hook = key.register_forward_pre_hook(refuse)
    with contextlib.suppress(torch.OutOfMemoryError):
        of_rows()
    hook.remove()
    assert len(tuned.shoestring_slot.outputs) == 3
    assert float(of_rows().detach()) == whole and tuned.shoestring_slot.outputs == ()
