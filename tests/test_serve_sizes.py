"""A pass has any number of tokens, its products few: rows after the last are computed in vain and seen by nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from shoestring.serve.engines.embedded_sizes import filled, in_few_sizes, rounded


def test_sizes_by_hand() -> None:
    assert [rounded(num) for num in (0, 1, 7, 8, 9, 13, 64, 65, 300, 1000)] == [0, 1, 7, 8, 12, 16, 64, 72, 320, 1024]


def test_sizes_are_few_and_little_is_computed_in_vain() -> None:
    sizes = [rounded(num) for num in range(1, 1025)]
    assert len(set(sizes)) == 54 and sizes == sorted(sizes)
    assert all(0 <= size - num <= max(3, num / 8) for num, size in enumerate(sizes, 1))


@pytest.mark.parametrize("num", [1, 8, 9, 70])
def test_a_product_is_that_of_its_own_rows(num: int) -> None:
    asked = []

    def product(x_NI: Any, weight: Any, bias: Any) -> Any:
        asked.append(len(x_NI))
        return linear(x_NI, weight, bias)

    x_NI, weight, bias = torch.randn(num, 5), torch.randn(3, 5), torch.randn(3)
    torch.testing.assert_close(in_few_sizes(product)(x_NI, weight, bias), linear(x_NI, weight, bias))
    assert asked == [rounded(num)]
    assert filled(x_NI)[num:].eq(0).all()
