"""Graders brought from elsewhere: each is a name with values, applied to one output; `scorer` makes a metric of a file.

A row passes where all its graders do, or, with a threshold, where the weighted share that passes reaches it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, require
from ..files import read_jsonl
from .metrics import lcs_length, parse_json, rouge_l

NOT = "not-"
LEVENSHTEIN = 5  # promptfoo's default: edits at most

Passes = Callable[[str, Mapping[str, Any]], bool]


def row_key(contents: Sequence[str]) -> str:
    """What a row is known by: the contents of its prompt's messages, white space apart."""
    return hashlib.sha256(" ".join("\n".join(contents).split()).encode()).hexdigest()[:24]


def scorer(path: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The metric of a graders file: lines of key, graders and, where the share that passes counts, threshold."""
    lines = {line["key"]: line for line in read_jsonl(path)}

    def score(row: Mapping[str, Any]) -> dict[str, Any]:
        line = lines.get(row_key([message["content"] or "" for message in row["messages"]]))
        if line is None:
            raise DataError(f"{path.name} has no graders for the row with prompt {row['prompt'][:60]!r}; import again")
        return graded(line["graders"], row["output"], line.get("threshold"))

    return score


def graded(graders: Sequence[Mapping[str, Any]], output: str, threshold: float | None = None) -> dict[str, Any]:
    """Whether the output passes, as a score, and which grader failed it first."""
    total = got = 0.0
    failed = None
    for grader in graders:
        weight = float(grader.get("weight", 1))
        passed = passes(grader, output)
        total, got = total + weight, got + weight * passed
        if not passed and failed is None and weight > 0:
            failed = f"{grader['type']} {json.dumps(grader.get('value'), ensure_ascii=False)[:60]}"
    share = got / total if total else 1.0
    is_passed = failed is None if threshold is None else share >= threshold
    return {"score": float(is_passed), "failure": None if is_passed else f"failed {failed}"}


def passes(grader: Mapping[str, Any], output: str) -> bool:
    """Whether an output passes one grader; a type that begins with not- is turned round."""
    kind = grader["type"]
    if kind.startswith(NOT):
        return not GRADERS[kind.removeprefix(NOT)](output, grader)
    return GRADERS[kind](output, grader)


def _texts(grader: Mapping[str, Any]) -> list[str]:
    value = grader.get("value")
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _equals(output: str, grader: Mapping[str, Any]) -> bool:
    value = grader.get("value")
    if not isinstance(value, (dict, list)):
        return output == str(value)
    try:
        return bool(json.loads(output) == value)
    except (ValueError, RecursionError):
        return False


def _matches_any(output: str, grader: Mapping[str, Any]) -> bool:
    return output.strip().casefold() in [text.strip().casefold() for text in _texts(grader)]


def _contains(every: bool, folded: bool, output: str, grader: Mapping[str, Any]) -> bool:
    texts = _texts(grader)
    if folded:
        output, texts = output.casefold(), [text.casefold() for text in texts]
    return (all if every else any)(text in output for text in texts)


def _starts(output: str, grader: Mapping[str, Any]) -> bool:
    return any(output.startswith(text) for text in _texts(grader))


def _ends(output: str, grader: Mapping[str, Any]) -> bool:
    """inspect's match at the end: case, spaces and punctuation at the ends apart."""
    said = _bare(output)
    return any(said.endswith(_bare(text)) for text in _texts(grader))


def _bare(text: str) -> str:
    return re.sub(r"^[\W_]+|[\W_]+$", "", text.casefold())


def _either_way(output: str, grader: Mapping[str, Any]) -> bool:
    """FuzzyMatch of openai/evals: one contains the other, without case, articles and punctuation."""
    said = _plain(output)
    texts = [_plain(text) for text in _texts(grader)]
    return any(said == text or bool(said and text and (said in text or text in said)) for text in texts)


def _plain(text: str) -> str:
    words = re.sub(r"[^\w\s]", "", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _regex(output: str, grader: Mapping[str, Any]) -> bool:
    return re.search(str(grader["value"]), output) is not None


def _json(is_whole: bool, output: str, grader: Mapping[str, Any]) -> bool:
    """The whole output, or an object somewhere in it, is JSON and keeps to the schema."""
    try:
        record = json.loads(output) if is_whole else parse_json(output)
    except (ValueError, RecursionError):
        return False
    if record is None and not is_whole:
        return False
    schema = grader.get("value")
    return schema is None or _schema(json.dumps(schema, sort_keys=True)).is_valid(record)


@functools.lru_cache(maxsize=64)
def _schema(schema: str) -> Any:
    jsonschema = require("jsonschema", extra="schema", purpose="a grader with a JSON Schema")
    return jsonschema.validators.validator_for(json.loads(schema), default=jsonschema.Draft202012Validator)(
        json.loads(schema)
    )


def _levenshtein(output: str, grader: Mapping[str, Any]) -> bool:
    return _edits(output, str(grader["value"])) <= grader.get("threshold", LEVENSHTEIN)


def _edits(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _similar_text(output: str, grader: Mapping[str, Any]) -> bool:
    """OpenAI's fuzzy_match: the indel ratio of rapidfuzz, 2 x common subsequence / both lengths, from 0 to 1."""
    text = str(grader["value"])
    ratio = 2 * lcs_length(output, text) / (len(output) + len(text)) if output or text else 1.0
    return ratio >= grader["threshold"]


def _rouge_l(output: str, grader: Mapping[str, Any]) -> bool:
    return rouge_l(output, str(grader["value"])) >= grader["threshold"]


def _words(output: str, grader: Mapping[str, Any]) -> bool:
    count, value = len(output.split()), grader["value"]
    if isinstance(value, Mapping):
        return bool(value.get("min", 0) <= count <= value.get("max", count))
    return bool(count == value)


def _set(output: str, grader: Mapping[str, Any]) -> bool:
    return graded(grader["value"], output, grader.get("threshold"))["score"] == 1.0


GRADERS: dict[str, Passes] = {
    "equals": _equals,
    "matches-any": _matches_any,
    "contains": functools.partial(_contains, True, False),
    "icontains": functools.partial(_contains, True, True),
    "contains-all": functools.partial(_contains, True, False),
    "contains-any": functools.partial(_contains, False, False),
    "icontains-all": functools.partial(_contains, True, True),
    "icontains-any": functools.partial(_contains, False, True),
    "starts-with": _starts,
    "ends-with": _ends,
    "either-contains": _either_way,
    "regex": _regex,
    "is-json": functools.partial(_json, True),
    "contains-json": functools.partial(_json, False),
    "levenshtein": _levenshtein,
    "fuzzy": _similar_text,
    "rouge-l": _rouge_l,
    "word-count": _words,
    "set": _set,
}
