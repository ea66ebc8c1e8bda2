"""train/fp8.py: the numbers of an FP8 base, on torch's CPU products; the same calls run on CUDA."""

import pytest
import torch

from shoestring.records import Device
from shoestring.train import fp8, fused, parity
from shoestring.train.loop import save_trained
from tests.test_train_fused import bare_loss, fuse, tiny, tuned_and_loss  # noqa: F401
from tests.test_train_trainer import HALF

# Rounding to e4m3 moves a number by at most 1/16 of itself, so a product of two by 1/8 and a little.
BOUND = 0.135
TYPICAL = 0.05  # such errors are random and mostly cancel in a sum


def row_scales() -> bool:
    """Whether torch's CPU products in FP8 take a scale a row: those of torch 2.11 take one a matrix."""
    one = torch.ones(16, 16).to(torch.float8_e4m3fn)
    try:
        fp8.product(one, one.t(), torch.ones(16, 1), torch.ones(1, 16), torch.float32, fast=False)
    except RuntimeError:
        return False
    return True


by_rows = pytest.mark.skipif(not row_scales(), reason="this torch's CPU products in FP8 take no scale a row")


@by_rows
@pytest.mark.parametrize("bias", [False, True])
def test_both_products_are_within_rounding(bias):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 96, bias=bias).bfloat16().requires_grad_(False)
    linear.weight.copy_(torch.randn(96, 64, generator=generator))
    linear.weight[3] *= 100  # rows have scales of their own
    layer = fp8._classes()[0](linear)
    x = torch.randn(5, 7, 64, generator=generator).bfloat16()
    x[0, 0] *= 1000  # and so have tokens
    grad = torch.randn(5, 7, 96, generator=generator).bfloat16() * 1e-6  # below e4m3's least number
    found = []
    for module in (linear, layer):
        given = x.clone().requires_grad_()
        y = module(given)
        found.append((y.detach(), *torch.autograd.grad(y, given, grad)))
    sums = (x.abs() @ linear.weight.abs().t(), grad.abs() @ linear.weight.abs())
    for exact, ours, most in zip(*found, sums, strict=True):
        assert ours.dtype == torch.bfloat16 and ours.shape == exact.shape
        apart = (ours.float() - exact.float()).abs()
        assert (apart <= BOUND * most.float()).all()
        assert 0 < apart.norm() < TYPICAL * exact.float().norm()
    torch.testing.assert_close(layer.weight, linear.weight, rtol=1 / 16, atol=0.002)


@by_rows
def test_the_products_are_those_of_the_rounded_matrices():
    """Against the same sums in float64: nothing but the rounding to e4m3 is lost."""
    torch.manual_seed(0)
    layer = fp8._classes()[0](torch.nn.Linear(32, 48, bias=False).requires_grad_(False))
    matrix = fp8.Fp8(layer)
    x, grad = torch.randn(6, 32), torch.randn(6, 48)
    weight = layer.quantised.double() * layer.scales
    rounded, scales = fp8.quantised_rows(x)
    torch.testing.assert_close(
        matrix.product(matrix.prepare(x)).double(), rounded.double() * scales @ weight.t(), rtol=1e-5, atol=1e-5
    )
    into = torch.ones(6, 32)
    matrix.add_input_gradient(grad, into)
    rounded, scales = fp8.quantised_rows(grad, layer.scales.t())
    expected = rounded.double() * scales @ layer.quantised.double() + 1
    torch.testing.assert_close(into.double(), expected, rtol=1e-5, atol=1e-5)
    assert not fp8.quantised_rows(torch.zeros(2, 16))[0].float().any()


@by_rows
def test_lora_trains_on_it_and_the_adapter_is_pefts(tiny, tmp_path):  # noqa: F811
    tuned, of_rows = tuned_and_loss(tiny, HALF)
    save_trained(tuned, tmp_path / "before")
    sixteen, bare = parity.measure(tuned, of_rows), bare_loss(tuned, of_rows)
    weights = sum(layer.base_layer.weight.nbytes for layer in fused.lora_layers(tuned))
    assert fp8.convert_checked(tuned, of_rows) == ""
    held = sum(t.nbytes for layer in fused.lora_layers(tuned) for t in layer.base_layer.buffers())
    assert held < 0.6 * weights  # of 32 x 32 matrices, whose scales count
    save_trained(tuned, tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes()

    theirs = parity.measure(tuned, of_rows)
    assert parity.difference(sixteen, theirs)[0] < parity.LOSS_LIMIT["fp8 for 16 bits"]
    assert bare_loss(tuned, of_rows) == pytest.approx(bare, rel=parity.LOSS_LIMIT["fp8 for 16 bits"])
    assert fuse(tuned, of_rows) == {"num_layers": 14, "num_groups": 4, "num_left": 0}
    assert parity.fault(theirs, parity.measure(tuned, of_rows), "fp8") is None
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(of_rows())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@by_rows
def test_the_gate_refuses_what_is_not_the_same(tiny, monkeypatch):  # noqa: F811
    tuned, of_rows = tuned_and_loss(tiny, HALF)
    monkeypatch.setattr(fp8, "LARGEST", 2**-8)  # leaves two numbers besides zero
    reason = fp8.convert_checked(tuned, of_rows)
    assert "differs by" in reason and "limit 0.02" in reason


def test_machines_without_fp8_are_told_why():
    assert fp8.cannot_run(HALF) == "cpu has no FP8 tensor cores"
    assert "no FP8" in fp8.cannot_run(Device("mps", "Apple M9", 2**34, 1, "float32", ""))
    assert fp8.refusal(HALF, False, "lora") == "train.fp8 is false"
    assert "NF4" in fp8.refusal(HALF, True, "qlora")
