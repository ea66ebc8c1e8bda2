"""Rows judged part by part, so that memory is bounded and time grows with the rows and not with their square."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...records import Example, Progress

MAX_LABEL_ROWS = 20_000  # the time of labels goes with the square of a part
MAX_RECORD_ROWS = 10_000  # what records and texts have in common is learned from 5,000 to 6,000 of them
MIN_PART_ROWS = 2_000
MAX_PART_CELLS = 8_000_000  # rows of a part times labels: what a score of each takes
RARE_ROWS = 20  # a label with fewer rows a part on average stays together
READ_EVERY = 50_000


def parts_of(examples: Sequence[Example], kind: str, progress: Progress) -> list[Any]:
    """Row numbers of each part, ascending; by the rows' hashes, so a row's part depends on no other row's place.

    Of a classification there are more parts where there are many labels, and the rows of a rare label stay together,
    since a label is judged by its other rows.
    """
    max_rows = MAX_LABEL_ROWS if kind == "classify" else MAX_RECORD_ROWS
    if len(examples) <= max_rows and kind != "classify":
        return [np.arange(len(examples))]
    hashes = np.zeros(len(examples), np.uint32)
    labels = np.zeros(len(examples), np.int32)
    numbers: dict[str, int] = {}
    for index, example in enumerate(examples):
        if index % READ_EVERY == 0:
            progress("dividing rows into parts", index, len(examples))
        answer = example.completion.strip()
        hashes[index] = _hash(f"{example.user_text}\0{answer}")
        if kind == "classify":
            labels[index] = numbers.setdefault(answer, len(numbers))
    part_rows = min(max_rows, max(MIN_PART_ROWS, MAX_PART_CELLS // max(len(numbers), 1)))
    num_parts = math.ceil(len(examples) / part_rows)
    part = hashes % num_parts
    if kind == "classify":
        is_rare = np.bincount(labels, minlength=len(numbers)) < RARE_ROWS * num_parts
        of_label = np.fromiter((_hash(label) % num_parts for label in numbers), np.uint32, len(numbers))
        part = np.where(is_rare[labels], of_label[labels], part)
    order = np.argsort(part, kind="stable")
    return np.split(order, np.searchsorted(part[order], np.arange(1, num_parts)))


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
