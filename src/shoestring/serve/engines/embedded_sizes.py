"""Products of passes in few sizes: a pass has as many tokens as clients happen to ask for, and kernels go by sizes.

oneDNN makes code for each number of rows of a 16-bit product and keeps that of the last 1024 products. Measured (torch
2.13, AVX512-BF16, five products of a model of 192 dimensions): 0.6 MB for each, 1.6 GB once all sizes up to 512 have
been met, and 0.4 ms each time that one is met first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ALL_UP_TO = 8  # answers of few clients, one token each: not a row is computed in vain


def rounded(num: int) -> int:
    """So many rows are computed for num: beyond 24 at most an eighth more; 54 sizes up to 1024."""
    if num <= ALL_UP_TO:
        return num
    step = max(4, 1 << max(0, (num - 1).bit_length() - 4))
    return -(-num // step) * step


def has_kernels_by_size(model: Any) -> bool:
    """Whether a model's products are 16-bit ones on a CPU."""
    return bool(model.device.type == "cpu" and model.dtype.itemsize == 2)


def filled(x_NI: Any) -> Any:
    """x with rows of zeros after it, `rounded` in all."""
    num = len(x_NI)
    size = rounded(num)
    if size == num:
        return x_NI
    padded = x_NI.new_zeros(size, *x_NI.shape[1:])
    padded[:num] = x_NI
    return padded


def in_few_sizes(product: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """The same product x (N, I), weight, bias -> (N, O), computed for `rounded` rows."""

    def of_few_sizes(x_NI: Any, weight: Any, bias: Any) -> Any:
        return product(filled(x_NI), weight, bias)[: len(x_NI)]

    return of_few_sizes
