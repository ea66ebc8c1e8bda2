"""Metrics of each task kind, 0 to 1, computed row by row; no network, no dependency beyond numpy.

classify  accuracy, macro_f1, invalid_label_frac
extract   leaf_f1 (mean over rows), leaf_f1_micro, exact_record, json_valid_frac
generate  chrf, rouge_l, exact_match (chat too)
sql       exact_match after normalisation, chrf
math      final_number, exact_match

What needs more than two texts (a database, a schema, tools, other rows) is in more_metrics.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from ..errors import DataError

CHRF_ORDER = 6
CHRF_BETA = 2.0
# Scripts written without spaces: each character is a token of rouge_l.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
_SQL_TOKENS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\d+\.\d+|\w+|[<>=!|]+|\S""")
_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212]\$?)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True, slots=True)
class Scored:
    """One output against its expected answer.

    values: per-row value of each metric that is a mean over rows. failure: why the output could
    not be scored as intended. counts: (matching, output, expected) leaves of an extraction.
    """

    values: dict[str, float]
    failure: str | None = None
    counts: tuple[int, int, int] = (0, 0, 0)


def score_output(kind: str, expected: str, output: str, labels: frozenset[str], *, needs_number: bool = True) -> Scored:
    """Score one output. labels: the label set of a classification task, else empty.

    needs_number: of a math answer; without it one without numbers counts as its text.

    Raises: DataError when the expected answer is not what the task kind needs.
    """
    if kind == "classify":
        return _score_label(expected, output, labels)
    if kind == "extract":
        return _score_record(expected, output)
    if kind == "sql":
        same = sql_normal_form(output) == sql_normal_form(expected)
        return Scored({"exact_match": float(same), "chrf": chrf(output, expected)}, _empty(output))
    exact = float(output.strip() == expected.strip())
    if kind == "math":
        truth, answer = final_number(expected), final_number(output)
        if truth is None and needs_number:
            raise DataError(
                f"expected answer {_short(expected)} holds no number; a math task needs one as its last number"
            )
        failure = "no number in the output" if answer is None else None
        is_same = answer == truth if truth is not None else bool(exact)
        return Scored({"final_number": float(is_same), "exact_match": exact}, failure)
    values = {"chrf": chrf(output, expected), "rouge_l": rouge_l(output, expected), "exact_match": exact}
    return Scored(values, _empty(output))


def aggregate(kind: str, scored: Sequence[Scored], expected: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """Every metric of the task kind over all rows."""
    means = {name: sum(s.values[name] for s in scored) / len(scored) for name in scored[0].values}
    if kind == "classify":
        means["macro_f1"] = macro_f1(*label_codes(expected, outputs))
        means["invalid_label_frac"] = sum(s.failure is not None for s in scored) / len(scored)
    if kind == "extract":
        matching, in_output, in_expected = (sum(s.counts[i] for s in scored) for i in range(3))
        means["leaf_f1_micro"] = 2 * matching / (in_output + in_expected)
        means["json_valid_frac"] = sum(s.counts[1] > 0 for s in scored) / len(scored)
    return means


def _empty(output: str) -> str | None:
    return None if output.strip() else "empty output"


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


# Classification


def _score_label(expected: str, output: str, labels: frozenset[str]) -> Scored:
    answer = output.strip()
    failure = None if answer in labels else f"invalid label {_short(answer)}"
    return Scored({"accuracy": float(failure is None and answer == expected.strip())}, failure)


def label_codes(expected: Sequence[str], outputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the expected labels, 0 to K - 1, and of the outputs, with K for any other output."""
    names = sorted({text.strip() for text in expected})
    code = {name: i for i, name in enumerate(names)}
    expected_N = np.array([code[text.strip()] for text in expected])
    output_N = np.array([code.get(text.strip(), len(names)) for text in outputs])
    return expected_N, output_N


def macro_f1(expected_N: np.ndarray, output_N: np.ndarray) -> float:
    """Unweighted mean of F1 over the labels that occur among the expected answers.

    A label that is never expected has no recall to measure; predicting it costs the true label's.
    """
    num_labels = int(expected_N.max()) + 1
    support_K = np.bincount(expected_N, minlength=num_labels)
    predicted_K = np.bincount(output_N, minlength=num_labels)[:num_labels]
    hits_K = np.bincount(expected_N[expected_N == output_N], minlength=num_labels)
    return float(np.mean((2 * hits_K / np.maximum(support_K + predicted_K, 1))[support_K > 0]))


# Extraction


def parse_json(text: str, kind: type = dict) -> Any | None:
    """The text as JSON, or else its first balanced JSON object (list, where kind is list), else None.

    Tolerates text and code fences around it. An object that never closes is no object, even if a
    closed one stands inside it.
    """
    try:
        whole = json.loads(text, parse_constant=_refuse_constant)
        if isinstance(whole, kind):
            return whole
    except (ValueError, RecursionError):
        pass
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    opening = "{" if kind is dict else "["
    start = text.find(opening)
    while start >= 0:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            end = _balanced_end(text, start)
            start = text.find(opening, end) if end else -1
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _balanced_end(text: str, start: int) -> int | None:
    """Index after the bracket that closes the one at start, quotes respected; None if none does."""
    opening = text[start]
    closing = "}" if opening == "{" else "]"
    depth, quoted, i = 0, False, start
    while i < len(text):
        char = text[i]
        if char == "\\" and quoted:
            i += 1
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in (opening, closing):
            depth += 1 if char == opening else -1
            if depth == 0:
                return i + 1
        i += 1
    return None


def _score_record(expected: str, output: str) -> Scored:
    truth = parse_json(expected.strip(), dict)
    if truth is None:
        truth = parse_json(expected.strip(), list)
    if truth is None:
        raise DataError(
            f"expected answer {_short(expected)} is not a JSON object; an extract task needs one in each row"
        )
    answer = parse_json(output.strip(), type(truth))
    if answer is None:
        return Scored({"leaf_f1": 0.0, "exact_record": 0.0}, "no JSON object in the output", (0, 0, num_leaves(truth)))
    counts = (matching_leaves(truth, answer), num_leaves(answer), num_leaves(truth))
    f1 = 2 * counts[0] / (counts[1] + counts[2])
    return Scored({"leaf_f1": f1, "exact_record": float(f1 == 1.0)}, None, counts)


def num_leaves(value: Any) -> int:
    """Leaves of a JSON value; an empty object or list counts as one."""
    if isinstance(value, (dict, list)) and value:
        return sum(num_leaves(v) for v in (value.values() if isinstance(value, dict) else value))
    return 1


def matching_leaves(expected: Any, output: Any) -> int:
    """Leaves that agree in path and value.

    Strings agree when equal, numbers when equal as numbers (1 and 1.0), true is not 1. Lists are
    aligned without regard to order: as multisets, or, where they hold objects or lists, greedily,
    the pair of items with the highest F1 first.
    """
    if isinstance(expected, dict) and isinstance(output, dict) and expected and output:
        return sum(matching_leaves(expected[key], output[key]) for key in expected.keys() & output.keys())
    if isinstance(expected, list) and isinstance(output, list) and expected and output:
        if any(isinstance(item, (dict, list)) for item in expected + output):
            return _align(expected, output)
        return sum((Counter(map(_leaf, expected)) & Counter(map(_leaf, output))).values())
    if isinstance(expected, (dict, list)) or isinstance(output, (dict, list)):
        return int(type(expected) is type(output) and not expected and not output)
    return int(_leaf(expected) == _leaf(output))


def _leaf(value: Any) -> tuple[str, Any]:
    kind = "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    return kind, value


def _align(expected: list[Any], output: list[Any]) -> int:
    sizes_expected, sizes_output = [num_leaves(v) for v in expected], [num_leaves(v) for v in output]
    pairs = []
    for i, left in enumerate(expected):
        for j, right in enumerate(output):
            matching = matching_leaves(left, right)
            if matching:
                pairs.append((-2 * matching / (sizes_expected[i] + sizes_output[j]), i, j, matching))
    used_expected: set[int] = set()
    used_output: set[int] = set()
    total = 0
    for _, i, j, matching in sorted(pairs):
        if i not in used_expected and j not in used_output:
            used_expected.add(i)
            used_output.add(j)
            total += matching
    return total


# Text


def chrf(output: str, expected: str) -> float:
    """Sentence chrF: F-beta of character n-grams, orders 1 to 6, beta 2, whitespace removed.

    Precision and recall are averaged over the orders both texts are long enough for.
    Source: Popović 2015, "chrF: character n-gram F-score"; averaging as in sacrebleu.
    """
    output, expected = "".join(output.split()), "".join(expected.split())
    if output == expected:
        return 1.0
    precision = recall = 0.0
    num_orders = min(CHRF_ORDER, len(output), len(expected))
    if num_orders == 0:
        return 0.0
    for n in range(1, num_orders + 1):
        grams_output = Counter(output[i : i + n] for i in range(len(output) - n + 1))
        grams_expected = Counter(expected[i : i + n] for i in range(len(expected) - n + 1))
        matching = sum((grams_output & grams_expected).values())
        precision += matching / (len(output) - n + 1) / num_orders
        recall += matching / (len(expected) - n + 1) / num_orders
    if precision + recall == 0:
        return 0.0
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def rouge_l(output: str, expected: str) -> float:
    """F1 of the longest common subsequence of words, case folded, punctuation ignored.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1.
    """
    words_output, words_expected = _WORDS.findall(output.casefold()), _WORDS.findall(expected.casefold())
    if not words_output or not words_expected:
        return float(words_output == words_expected and output.strip() == expected.strip())
    return 2 * lcs_length(words_output, words_expected) / (len(words_output) + len(words_expected))


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel over a.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & full
    return len(a) - row.bit_count()


def sql_normal_form(query: str) -> str:
    """The query with case, whitespace and closing semicolons made uniform outside quotes."""
    tokens = _SQL_TOKENS.findall(query)
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return " ".join(token if token[0] in "'\"`" else token.casefold() for token in tokens)


def numbers_in(text: str) -> list[Decimal]:
    """Every number of the text in order, as final_number reads them."""
    return [_decimal(found) for found in _NUMBER.findall(text)]


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("$", "").replace("\u2212", "-"))


def final_number(text: str) -> Decimal | None:
    """The number after the last '####' if there is one, else the last number of the text.

    Thousands separators are read; a minus counts unless it stands between two operands.
    """
    head, mark, tail = text.rpartition("####")
    numbers = _NUMBER.findall(tail)
    if not numbers:
        return final_number(head) if mark else None
    found = numbers[0] if mark else numbers[-1]
    return _decimal(found)
