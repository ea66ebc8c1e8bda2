"""OpenAI Evals: hosted ones as saved from the API (eval, runs, data), and files of the openai/evals repository.

Hosted Evals are read-only and close on 30 November 2026; what GET /v1/evals/ID, .../runs and .../output_items answer,
and the data files, can be brought. Sources: types/graders of openai 3.57; github.com/openai/evals, eval-templates.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..evaluate.graders import GRADERS
from .suites import Case, Left, Suite, read_text, read_yaml, reference_of, rendered

OUTPUT = re.compile(r"\{\{\s*sample\.output_text\s*\}\}")
OPERATIONS = {"eq": "equals", "ne": "not-equals", "like": "contains", "ilike": "icontains"}
SIMILARITIES = {"fuzzy_match": "fuzzy", "rouge_l": "rouge-l"}
# Where an item's answer stands, in this order, if no grader names it.
ANSWERS = ("ideal", "reference", "expected", "expected_output", "answer", "label", "target", "output")
# Classes of openai/evals that grade by rule.
CLASSES = {"Match": "starts-with", "Includes": "contains-any", "FuzzyMatch": "either-contains", "JsonMatch": "equals"}


def read(path: Path) -> Suite:
    """The suite of a file or folder. Raises: BadInput."""
    found = _collected(path)
    suite = Suite("openai-evals", path, path.resolve().stem)
    if found.specs:
        _registry(suite, found, path)
    elif found.evals or found.items:
        _hosted(suite, found)
    elif found.samples:
        for place, sample in found.samples:
            suite.cases += _sample_case(suite, place, sample, None, {})
    if not suite.cases and not suite.left:
        raise BadInput(
            f"{path}: no eval is in it. Save what GET /v1/evals/ID and GET /v1/evals/ID/runs/RUN/output_items answer, "
            "with the data file (lines with `item`), or give a YAML or samples file of the openai/evals repository"
        )
    return suite


class _Found:
    """What the files hold: evals, runs, items with their place, samples of the repository, its YAML specs."""

    def __init__(self) -> None:
        self.evals: list[Mapping[str, Any]] = []
        self.runs: list[Mapping[str, Any]] = []
        self.items: list[tuple[str, Mapping[str, Any]]] = []
        self.samples: list[tuple[str, Mapping[str, Any]]] = []
        self.specs: dict[str, Mapping[str, Any]] = {}

    def take(self, value: Any, place: str) -> None:
        """File one JSON value by its form."""
        if isinstance(value, list) or (isinstance(value, Mapping) and value.get("object") == "list"):
            for n, one in enumerate(value if isinstance(value, list) else value.get("data", [])):
                self.take(one, f"{place}[{n}]")
        elif not isinstance(value, Mapping):
            return
        elif "testing_criteria" in value:
            self.evals.append(value)
            for n, run in enumerate(value.get("runs") or []):
                self.take(run, f"{place} runs[{n}]")
        elif value.get("object") == "eval.run" or "data_source" in value:
            self.runs.append(value)
            source = (value.get("data_source") or {}).get("source") or {}
            for n, row in enumerate(source.get("content") or [] if isinstance(source, Mapping) else []):
                self.take(row, f"{place} content[{n}]")
        elif isinstance(value.get("datasource_item"), Mapping):
            self.items.append((place, value["datasource_item"]))
        elif isinstance(value.get("item"), Mapping):
            self.items.append((place, value["item"]))
        elif "input" in value:
            self.samples.append((place, value))


def _collected(path: Path) -> _Found:
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".json", ".jsonl", ".yaml", ".yml"))
    found = _Found()
    for file in files:
        if file.suffix in (".yaml", ".yml"):
            content = read_yaml(file)
            if isinstance(content, Mapping):
                found.specs |= {str(k): v for k, v in content.items() if isinstance(v, Mapping) and "class" in v}
            continue
        text = read_text(file)
        try:
            if file.suffix == ".json":
                found.take(json.loads(text), file.name)
                continue
            for n, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    found.take(json.loads(line), f"{file.name}:{n}")
        except ValueError as error:
            raise BadInput(f"{file} is no JSON: {error}") from error
    return found


# ---- hosted ----


def _hosted(suite: Suite, found: _Found) -> None:
    if len(found.evals) > 1:
        names = ", ".join(str(one.get("name") or one.get("id")) for one in found.evals)
        raise BadInput(f"{suite.source} holds {len(found.evals)} evals ({names}): import one at a time")
    spec = found.evals[0] if found.evals else {}
    suite.name = str(spec.get("name") or suite.name)
    suite.left += [
        Left("data", "stored completions", "lie with OpenAI; save them as a file of items while it answers")
        for run in found.runs[:1]
        if ((run.get("data_source") or {}).get("source") or {}).get("type") == "stored_completions"
    ]
    template = next((t for run in found.runs if (t := _template(run, suite))), None)
    criteria = list(spec.get("testing_criteria") or [])
    seen: set[str] = set()
    for place, item in found.items:
        text = json.dumps(item, sort_keys=True)
        if text in seen:  # each run's output items hold them again
            continue
        seen.add(text)
        try:
            messages = _asked(template, item)
        except ValueError as error:
            suite.left.append(Left(place, "item", str(error)))
            continue
        graders: list[dict[str, Any]] = []
        rubrics: list[str] = []
        for criterion in criteria:
            _take(criterion, item, place, graders, rubrics, suite)
        reference = reference_of(graders)
        if reference is None:
            reference = next((_said(item[key]) for key in ANSWERS if item.get(key) not in (None, "")), None)
        suite.cases.append(Case(place, messages, reference, tuple(graders), tuple(rubrics)))


def _template(run: Mapping[str, Any], suite: Suite) -> list[Mapping[str, Any]] | None:
    given = (run.get("data_source") or {}).get("input_messages") or {}
    if isinstance(given, Mapping) and given.get("type") == "template":
        return [turn for turn in given.get("template") or [] if isinstance(turn, Mapping)]
    return None


def _asked(template: list[Mapping[str, Any]] | None, item: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The messages of an item: by the run's template, or those that it holds. Raises: ValueError."""
    if template is None:
        for key in ("messages", "input", "prompt", "question"):
            if item.get(key):
                return _turns(item[key])
        raise ValueError("no run says how the item is asked (input_messages), and it has no input, prompt or messages")
    return tuple((_role(turn), rendered(_content(turn.get("content")), {"item": item})) for turn in template)


def _role(turn: Mapping[str, Any]) -> str:
    return {"developer": "system"}.get(str(turn.get("role", "user")), str(turn.get("role", "user")))


def _content(content: Any) -> str:
    """Raises: ValueError where it is more than text."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) and isinstance(content.get("text"), str):
        return str(content["text"])
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    raise ValueError("its messages hold more than text")


def _turns(value: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        return (("user", value),)
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return tuple((_role(turn), _content(turn.get("content"))) for turn in value)
    raise ValueError("its input is neither text nor messages")


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _take(
    one: Mapping[str, Any], item: Mapping[str, Any], place: str, graders: list[dict[str, Any]], rubrics: list[str],
    suite: Suite,
) -> None:  # fmt: skip
    """One testing criterion on one item: a grader, a rubric, or listed as left."""
    kind, name = str(one.get("type")), str(one.get("name") or one.get("type"))
    try:
        if kind == "string_check":
            operation = OPERATIONS.get(str(one.get("operation")))
            if operation is None or not OUTPUT.fullmatch(str(one.get("input")).strip()):
                raise ValueError("it checks something else than the whole output")
            graders.append({"type": operation, "value": rendered(str(one.get("reference")), {"item": item})})
        elif kind == "text_similarity":
            measure = SIMILARITIES.get(str(one.get("evaluation_metric")))
            if measure is None:
                raise ValueError(f"there is no {one.get('evaluation_metric')} here; fuzzy_match and rouge_l are")
            value = rendered(str(one.get("reference")), {"item": item})
            graders.append({"type": measure, "value": value, "threshold": float(one.get("pass_threshold") or 0.0)})
        elif kind in ("label_model", "score_model"):
            rubrics.append(_rubric(one, kind))
            suite.judges = list(dict.fromkeys((*suite.judges, str(one.get("model")))))
        elif kind in ("python", "endpoint"):
            raise ValueError("it is code; write it as a Python function and name that: task.metric: my_metric.py:score")
        else:
            raise ValueError("no such grader is known")
    except ValueError as error:
        suite.left.append(Left(place, f"{kind} {name!r}", str(error)))


def _rubric(one: Mapping[str, Any], kind: str) -> str:
    """A model grader's instructions as one criterion, to be told by yes or no. Raises: ValueError."""
    turns = [turn for turn in one.get("input") or [] if isinstance(turn, Mapping)]
    asked = "\n".join(_content(turn.get("content")) for turn in turns if _role(turn) == "system").strip()
    asked = asked or "\n".join(_content(turn.get("content")) for turn in turns).strip()
    # What a row or its answer fills in, the judge is shown anyway.
    asked = re.sub(r"\{\{\s*(item|sample)\.[\w.]+\s*\}\}", "(see there)", asked)
    if not asked or "{{" in asked or "{%" in asked:
        raise ValueError("its instructions cannot be told apart from the rows")
    if kind == "label_model":
        passing = ", ".join(map(str, one.get("passing_labels") or []))
        return f"By these instructions the answer is labelled {passing}: {asked}"
    low, high = (one.get("range") or [0, 1])[:2]
    least = one.get("pass_threshold")
    if least is None:
        raise ValueError("it has no pass_threshold")
    return f"By these instructions the answer is given at least {least} on a scale from {low} to {high}: {asked}"


# ---- the repository's ----


def _registry(suite: Suite, found: _Found, path: Path) -> None:
    if len(found.specs) > 1:
        raise BadInput(f"{path} holds the evals {', '.join(found.specs)}: import one file with one of them")
    name, spec = next(iter(found.specs.items()))
    suite.name = name.split(".")[0]
    arguments = spec.get("args") or {}
    named = str(arguments.get("samples_jsonl") or "")
    samples = found.samples
    if not samples or not path.is_dir():
        places = [path.parent / named, path.parent / "data" / named, path.parent.parent / "data" / named]
        file = next((place for place in places if named and place.is_file()), None)
        if file is None:
            raise BadInput(f"{path}: its samples {named!r} are not beside it, nor in a folder data; put them there")
        beside = _collected(file)
        samples = beside.samples
    for place, sample in samples:
        suite.cases += _sample_case(suite, place, sample, str(spec["class"]).split(":")[-1], arguments)


def _sample_case(
    suite: Suite, place: str, sample: Mapping[str, Any], kind: str | None, arguments: Mapping[str, Any]
) -> Iterator[Case]:
    ideal = sample.get("ideal")
    try:
        messages = _turns(sample.get("input"))
    except ValueError as error:
        suite.left.append(Left(place, "sample", str(error)))
        return
    graders: list[dict[str, Any]] = []
    rubrics: list[str] = []
    values = ideal if isinstance(ideal, list) else [] if ideal is None else [ideal]
    if kind in CLASSES and values:
        grader = CLASSES[kind]
        if kind == "Includes" and arguments.get("ignore_case"):
            grader = f"i{grader}"
        if kind == "JsonMatch":
            try:
                parsed = json.loads(values[0]) if isinstance(values[0], str) else values[0]
            except ValueError:
                suite.left.append(Left(place, "sample", "its ideal answer is no JSON, which JsonMatch compares"))
                return
            graders.append({"type": grader, "value": parsed})
        else:
            graders.append({"type": grader, "value": values})
        assert grader in GRADERS, grader
    elif kind == "ModelBasedClassify" and arguments.get("modelgraded_spec") in ("closedqa", "fact"):
        given = sample.get("criteria") or arguments.get("args", {}).get("criteria")
        rubrics.append(str(given) if given else "Its facts agree with the reference answer.")
    elif kind is not None:
        suite.left.append(Left(place, f"class {kind}", "grades by code or by a specification that is not known here"))
    reference = _said(values[0]) if values else None
    yield Case(place, messages, reference, tuple(graders), tuple(rubrics))
