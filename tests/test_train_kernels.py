"""train/kernels.py: when Liger's kernels are on, that they are the model's own numbers, and what is said where not."""

import pytest
import torch
import torch.nn.functional as F

from shoestring.records import Device
from shoestring.train import fused, kernels, parity
from shoestring.train.kernels import LIGER, TORCH, choose_kernels
from tests.test_train_fused import tuned_and_loss
from tests.test_train_trainer import EXACT
from tests.tiny import make_model

CUDA = Device("cuda", "card", 2**34, 1, "float32", "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def normed(x, weight, eps):
    """What the kernel computes: rounded to the input's type before the weight."""
    return weight * (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def gated(gate, up):
    return F.silu(gate) * up


@pytest.mark.parametrize("fuses", [False, True])
def test_norms_and_mlps_are_replaced_one_by_one_and_given_back(tiny, monkeypatch, fuses):
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    theirs = parity.measure(tuned, of_rows)
    if fuses:
        fused.choose_adapters(tuned, of_rows, "float32")
    calls = {"norm": 0, "mlp": 0}

    def counted(name, function):
        def run(*given):
            calls[name] += 1
            return function(*given)

        return run

    monkeypatch.setattr(kernels, "functions", lambda: (counted("norm", normed), counted("mlp", gated)))
    # Two layers: two norms and one MLP each, and the last norm.
    assert choose_kernels(tuned, of_rows, "float32", CUDA)[0] == LIGER and calls == {"norm": 5, "mlp": 2}
    assert parity.fault(theirs, parity.measure(tuned, of_rows), "float32") is None and calls["norm"] == 10
    kernels.switch_off(tuned.get_base_model())
    assert parity.fault(theirs, parity.measure(tuned, of_rows), "float32") is None and calls["norm"] == 10


def test_a_kernel_that_is_wrong_or_fails_is_off_and_says_why(tiny, monkeypatch):
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    theirs = parity.measure(tuned, of_rows)
    monkeypatch.setattr(kernels, "functions", lambda: (normed, lambda gate, up: gate * up))
    route, why = choose_kernels(tuned, of_rows, "float32", CUDA)
    assert route == TORCH and "Liger's kernels are off: loss" in why

    def fails(*given):
        raise AssertionError("no kernel image for this card")

    monkeypatch.setattr(kernels, "functions", lambda: (fails, gated))
    assert choose_kernels(tuned, of_rows, "float32", CUDA) == (
        TORCH, "Liger's kernels are off: AssertionError: no kernel image for this card",
    )  # fmt: skip
    assert parity.fault(theirs, parity.measure(tuned, of_rows), "float32") is None


def test_where_they_cannot_run_the_reason_is_told(tiny, monkeypatch):
    tuned, of_rows = tuned_and_loss(tiny, EXACT)
    assert choose_kernels(tuned, of_rows, "float32", EXACT)[1].endswith("they are for CUDA, this is cpu")
    config = tuned.get_base_model().config
    monkeypatch.setattr(config, "hidden_act", "gelu")
    assert choose_kernels(tuned, of_rows, "float32", CUDA)[1].endswith("its activation is gelu")
    monkeypatch.setattr(config, "model_type", "gemma3")
    assert "not known for gemma3 models" in choose_kernels(tuned, of_rows, "float32", CUDA)[1]
