"""promptfoo's configurations: prompts, variables, asserts. Source: promptfoo.dev/docs/configuration, version 0.123."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..evaluate.graders import GRADERS
from .suites import Case, Left, Suite, read_text, read_yaml, reference_of, rendered

NAMES = ("promptfooconfig.yaml", "promptfooconfig.yml", "promptfooconfig.json")
RUBRICS = ("llm-rubric", "model-graded-closedqa", "g-eval")
FACTUAL = ("factuality", "model-graded-factuality")
FACTS_AGREE = "Its facts agree with the reference answer."
CODE = ("javascript", "python", "ruby", "webhook")
NOT_QUALITY = {
    "cost": "Shoestring tells the cost of each row",
    "latency": "Shoestring tells the latency of each row",
}
CSV_TYPES = {"grade": "llm-rubric", "fn": "javascript", "eval": "javascript"}
LISTS = ("contains-any", "contains-all", "icontains-any", "icontains-all")


def read(path: Path, number: int = 1) -> Suite:
    """The suite of a configuration; number: which of its prompts, from 1. Raises: BadInput."""
    if path.is_dir():
        found = next((path / name for name in NAMES if (path / name).is_file()), None)
        if found is None:
            raise BadInput(f"{path} holds none of {', '.join(NAMES)}; name the file")
        path = found
    config = read_yaml(path)
    if not isinstance(config, Mapping) or not ("tests" in config or "scenarios" in config):
        raise BadInput(f"{path}: this is no promptfoo configuration (it needs prompts and tests)")
    suite = Suite("promptfoo", path, str(config.get("description") or path.resolve().parent.name))
    prompts = list(_prompts(config.get("prompts") or ["{{prompt}}"], path.parent, suite))
    if not 1 <= number <= len(prompts):
        raise BadInput(f"{path}: --prompt {number}, and {len(prompts)} prompts can be read, {len(suite.left)} cannot")
    template = prompts[number - 1][1]
    suite.left += [
        Left("prompts", name, f"rows are asked in one way; 'shoestring import promptfoo --prompt {n}' takes this one")
        for n, (name, _) in enumerate(prompts, 1)
        if n != number
    ]
    default = config.get("defaultTest") or {}
    if isinstance(default, str):
        default = read_yaml(_file(default, path.parent))
    suite.judges = _judges(config, default)
    for place, test in _tests(config, path.parent, suite):
        for case in _cases(place, test, default, template, path.parent, suite):
            suite.cases.append(case)
    return suite


def _file(name: str, folder: Path) -> Path:
    return folder / name.removeprefix("file://")


def _prompts(given: Any, folder: Path, suite: Suite) -> Iterator[tuple[str, str]]:
    """Label and template of each prompt."""
    for number, one in enumerate(given if isinstance(given, list) else [given], 1):
        label, text = f"prompt {number}", one
        if isinstance(one, Mapping):
            label, text = str(one.get("label") or one.get("id") or label), one.get("raw") or one.get("id") or ""
        if not isinstance(text, str):
            suite.left.append(Left("prompts", label, f"is a {type(text).__name__}"))
            continue
        names = text.startswith("file://") or (len(text) < 200 and re.fullmatch(r"[\w./*-]+\.\w{2,5}(:\w+)?", text))
        if not names:
            yield label, text
            continue
        for name in sorted(glob.glob(str(_file(text, folder)))) or [str(_file(text, folder))]:
            path = Path(name)
            if path.suffix not in (".txt", ".md", ".json", ".yaml", ".yml", ".j2"):
                suite.left.append(Left("prompts", path.name, "is made by a program"))
                continue
            if path.suffix in (".yaml", ".yml"):
                yield path.name, json.dumps(read_yaml(path), ensure_ascii=False)
                continue
            parts = re.split(r"(?m)^---\s*$", read_text(path)) if path.suffix == ".txt" else [read_text(path)]
            for i, part in enumerate(parts, 1):
                yield path.name + (f" part {i}" if len(parts) > 1 else ""), part.strip()


def _judges(config: Mapping[str, Any], default: Mapping[str, Any]) -> list[str]:
    options = default.get("options") or {}
    found = [options.get("provider"), *(one.get("provider") for one in default.get("assert") or [])]
    return [one if isinstance(one, str) else str(one.get("id")) for one in found if one]


def _tests(config: Mapping[str, Any], folder: Path, suite: Suite) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each test with its place."""
    given = config.get("tests") or []
    for number, one in enumerate(given if isinstance(given, list) else [given]):
        if isinstance(one, str):
            yield from _tests_of_file(one, folder, suite)
        else:
            yield f"tests[{number}]", one
    for s, scenario in enumerate(config.get("scenarios") or []):
        if not isinstance(scenario, Mapping):
            suite.left.append(Left(f"scenarios[{s}]", "scenario", "stands in another file; name that file"))
            continue
        for (c, values), (t, test) in itertools.product(
            enumerate(scenario.get("config") or [{}]), enumerate(scenario.get("tests") or [{}])
        ):
            both = {**(values.get("vars") or {}), **(test.get("vars") or {})}
            yield f"scenarios[{s}] config {c} test {t}", {**values, **test, "vars": both}


def _tests_of_file(name: str, folder: Path, suite: Suite) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if re.match(r"https?://|huggingface:", name):
        suite.left.append(Left("tests", name, "lies on the network; download it and name the file"))
        return
    paths = sorted(glob.glob(str(_file(name, folder)))) or [str(_file(name, folder))]
    for path in map(Path, paths):
        if path.suffix == ".csv":
            yield from _csv_tests(path)
        elif path.suffix in (".jsonl", ".ndjson"):
            for n, line in enumerate(read_text(path).splitlines(), 1):
                if line.strip():
                    yield f"{path.name}:{n}", json.loads(line)
        elif path.suffix in (".yaml", ".yml", ".json"):
            content = read_yaml(path)
            for n, test in enumerate(content if isinstance(content, list) else [content]):
                yield f"{path.name}[{n}]", test
        else:
            suite.left.append(Left("tests", path.name, "is made by a program"))


def _csv_tests(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Columns are variables; __expected and __expected1, ... are asserts."""
    for n, row in enumerate(csv.DictReader(io.StringIO(read_text(path).lstrip("\ufeff"))), 2):
        asserts = [_csv_assert(v) for k, v in row.items() if k and re.fullmatch(r"__expected\d*", k) and v]
        values = {k: v for k, v in row.items() if k and not k.startswith("__")}
        test: dict[str, Any] = {"vars": values, "assert": asserts}
        if row.get("__threshold"):
            test["threshold"] = float(row["__threshold"])
        yield f"{path.name}:{n}", test


def _csv_assert(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"(not-)?([a-z-]+)(?:\(([\d.]+)\))?(?::\s*(.*))?", text.strip(), re.DOTALL)
    kind = CSV_TYPES.get(match[2], match[2]) if match else ""
    is_known = kind in GRADERS or kind in (*RUBRICS, *FACTUAL, *CODE, *NOT_QUALITY, "similar")
    if match is None or not is_known or (match[4] is None and kind not in ("is-json", "contains-json")):
        return {"type": "equals", "value": text}
    made: dict[str, Any] = {"type": (match[1] or "") + kind, "value": match[4]}
    if match[3]:
        made["threshold"] = float(match[3])
    return made


def _cases(
    place: str, test: Any, default: Mapping[str, Any], template: str, folder: Path, suite: Suite
) -> Iterator[Case]:
    """The rows of one test: one for each combination of variables that are lists."""
    if not isinstance(test, Mapping):
        suite.left.append(Left(place, "test", f"is a {type(test).__name__}"))
        return
    given = test.get("vars") or {}
    if isinstance(given, str):
        given = read_yaml(_file(given, folder))
    values = {**(default.get("vars") or {}), **given}
    try:
        values = {name: _value(value, folder) for name, value in values.items()}
    except ValueError as error:
        suite.left.append(Left(place, "test", str(error)))
        return
    names = [name for name, value in values.items() if isinstance(value, list)]
    for combination in itertools.product(*(values[name] for name in names)):
        filled = {**values, **dict(zip(names, combination, strict=True))}
        try:
            messages = _messages(rendered(template, filled))
        except ValueError as error:
            suite.left.append(Left(place, "test", str(error)))
            continue
        graders: list[dict[str, Any]] = []
        rubrics: list[str] = []
        references: list[str] = []
        for one in [*(default.get("assert") or []), *(test.get("assert") or [])]:
            _take(one, place, filled, graders, rubrics, references, suite, folder)
        threshold = test.get("threshold", default.get("threshold"))
        reference = references[0] if references else reference_of(graders)
        yield Case(place, messages, reference, tuple(graders), tuple(rubrics), threshold)


def _value(value: Any, folder: Path) -> Any:
    """A variable; the text of a file that it names. Raises: ValueError."""
    if isinstance(value, str) and value.startswith("file://"):
        path = _file(value, folder)
        if path.suffix not in (".txt", ".md", ".json", ".yaml", ".yml", ".csv"):
            raise ValueError(f"a variable is the file {path.name}, which is no text")
        return read_text(path)
    return value


def _messages(text: str) -> tuple[tuple[str, str], ...]:
    """A prompt as messages: a JSON list of roles and contents, or one user turn. Raises: ValueError."""
    if text.lstrip().startswith("[") and '"role"' in text:
        try:
            turns = json.loads(text)
        except ValueError as error:
            raise ValueError(f"its prompt is no JSON once filled in: {error}") from error
        if not all(isinstance(turn.get("content"), str) for turn in turns):
            raise ValueError("its prompt holds more than text")
        return tuple((str(turn["role"]), turn["content"]) for turn in turns)
    return (("user", text),)


def _take(
    one: Any, place: str, values: dict[str, Any], graders: list[dict[str, Any]], rubrics: list[str],
    references: list[str], suite: Suite, folder: Path,
) -> None:  # fmt: skip
    """One assert: a grader, a rubric, or listed as left."""
    if not isinstance(one, Mapping) or not isinstance(one.get("type", "assert-set"), str):
        suite.left.append(Left(place, "assert", "is none that promptfoo documents"))
        return
    kind = str(one.get("type", "assert-set"))
    base = kind.removeprefix("not-")
    if base == "assert-set":
        inner: list[dict[str, Any]] = []
        for part in one.get("assert") or []:
            _take(part, place, values, inner, rubrics, references, suite, folder)
        if inner:
            kept = {k: one[k] for k in ("threshold", "weight") if k in one}
            graders.append({"type": "set", "value": inner, **kept})
        return
    value = one.get("value")
    try:
        if isinstance(value, str) and value.startswith("file://"):
            path = _file(value, folder)
            value = read_yaml(path) if path.suffix in (".json", ".yaml", ".yml") else read_text(path)
        value = _filled(value, values)
        why = _why_not(base, one, value)
    except (ValueError, BadInput) as error:
        why = str(error)
    if why:
        suite.left.append(Left(place, f"assert {kind}", why))
    elif base in FACTUAL:
        rubrics.append(FACTS_AGREE)
        references.append(str(value))
    elif base in RUBRICS:
        rubrics.extend(str(text) for text in (value if isinstance(value, list) else [value]))
    else:
        if base in LISTS and isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        kept = {k: one[k] for k in ("threshold", "weight") if k in one}
        graders.append({"type": kind, "value": _parsed(base, value), **kept})


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, str):
        return rendered(value, values)
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    return value


def _parsed(kind: str, value: Any) -> Any:
    """Schemas may be written as text."""
    if kind in ("is-json", "contains-json") and isinstance(value, str):
        return read_schema(value)
    return value


def read_schema(text: str) -> Any:
    """A JSON Schema written as JSON or YAML. Raises: ValueError."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"its schema is no JSON: {str(error).splitlines()[0]}") from error


def _why_not(kind: str, one: Mapping[str, Any], value: Any) -> str | None:
    """Why an assert is not carried over."""
    if kind in CODE:
        return f"{kind} is code; write it as a Python function and name that: task.metric: my_metric.py:score"
    if kind in NOT_QUALITY:
        return NOT_QUALITY[kind]
    if "transform" in one:
        return "it transforms the output by code first"
    if kind in RUBRICS or kind in FACTUAL:
        return None if value else "it has no rubric"
    if kind not in GRADERS:
        return "there is no such grader here; a judge's criterion or a function of your own can take its place"
    if kind == "regex":
        try:
            re.compile(str(value))
        except re.error as error:
            return f"its regular expression is none in Python: {error}"
    return None if value is not None or kind in ("is-json", "contains-json") else "it has no value"
