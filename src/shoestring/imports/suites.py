"""An evaluation made elsewhere, as held-out rows, graders and a run file; what cannot be carried over is listed."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import METRICS_BY_KIND, parse_run_file
from ..data.detect import task_kind
from ..errors import BadInput, ConfigError
from ..evaluate.graders import row_key
from ..files import write_jsonl, write_whole
from ..market.serving import ApiPrice, api_prices
from ..messages import Example, Message

ROWS, GRADERS, METRIC, RUN_FILE = "rows.jsonl", "graders.jsonl", "graders.py", "run.yaml"
# Stands for the answer of a row that has none to compare with: only graders or a judge can score it.
NO_REFERENCE = "-"
MAX_TOLD = 5
METRIC_TEXT = '''"""The graders of {source}, in graders.jsonl beside this file; by 'shoestring import {tool}'."""

from pathlib import Path

from shoestring.evaluate.graders import scorer

score = scorer(Path(__file__).with_suffix(".jsonl"))
'''


@dataclass(frozen=True, slots=True)
class Left:
    """Something that is not carried over: where it stood, what it was, why."""

    place: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Case:
    """One row: the prompt's messages, a reference answer where there is one, and its graders."""

    place: str
    messages: tuple[tuple[str, str], ...]  # role, content
    reference: str | None
    graders: tuple[dict[str, Any], ...] = ()
    rubrics: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(slots=True)
class Suite:
    """An evaluation as it was read; judges: names of the models that judged there."""

    tool: str
    source: Path
    name: str
    cases: list[Case] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    judges: list[str] = field(default_factory=list)


def reference_of(graders: Sequence[dict[str, Any]]) -> str | None:
    """The answer that graders ask for, where one of them is or holds it."""
    for kinds in (("equals", "matches-any"), ("fuzzy", "rouge-l", "levenshtein", "either-contains", "ends-with"),
                  ("starts-with", "contains", "icontains", "contains-any", "icontains-any")):  # fmt: skip
        for grader in graders:
            value = grader.get("value")
            if grader["type"] in kinds and value not in (None, "", []):
                first = value[0] if isinstance(value, list) and grader["type"] != "equals" else value
                return json.dumps(first, ensure_ascii=False) if isinstance(first, (dict, list)) else str(first)
    return None


def write(suite: Suite, folder: Path, train: Path | None, models: Sequence[str]) -> dict[str, Any]:
    """Write rows, graders and the run file to folder; what was made of the suite, as `--json` prints it.

    Raises: BadInput where no row is left, or rows without an answer would have to be learned from.
    """
    cases = _merged(suite)
    if not cases:
        raise BadInput(f"{suite.source}: no row can be carried over. {told(suite.left)}")
    without = [case for case in cases if case.reference is None]
    if train is None and without:
        raise BadInput(
            f"{len(without)} of {len(cases)} rows have no answer to learn from, such as {without[0].place}: they can "
            "only be held out; name training rows with --train FILE"
        )
    rubrics = _common_rubrics(suite, cases)
    kind, metric = _kind_and_metric(cases)
    judge = _judge_price(suite) if rubrics else None
    if rubrics and not any(case.graders for case in cases):
        if judge is not None:
            metric = "judge"
        elif without:
            raise BadInput(
                f"{suite.source}: rubrics alone score {len(without)} rows, and the judge that was used there "
                f"({', '.join(suite.judges) or 'none is named'}) has no dated price here; name one: --judge NAME, of "
                f"{', '.join(_priced())}"
            )
    rows = [_row(case) for case in cases]
    text = _run_file(suite, cases, folder, train, models, kind, metric, rubrics, judge)
    parse_run_file(text, "the run file")
    write_jsonl(folder / ROWS, rows)
    if metric.startswith(METRIC):
        lines = [
            {
                "key": row_key([content for _, content in case.messages]),
                "place": case.place,
                "graders": list(case.graders),
                **({} if case.threshold is None else {"threshold": case.threshold}),
            }
            for case in cases
        ]
        write_jsonl(folder / GRADERS, lines)
        write_whole(folder / METRIC, METRIC_TEXT.format(source=suite.source.name, tool=suite.tool))
    write_whole(folder / RUN_FILE, text)
    return {
        "run_file": str(folder / RUN_FILE),
        "rows": len(cases),
        "rows_without_reference": len(without),
        "kind": kind,
        "metric": metric,
        "graders": dict(Counter(grader["type"] for case in cases for grader in case.graders)),
        "criteria": rubrics,
        "not_carried_over": [{"place": one.place, "what": one.what, "why": one.why} for one in suite.left],
    }


def told(left: Sequence[Left]) -> str:
    """What was not carried over, shortly."""
    shown = "; ".join(f"{one.place}: {one.what}: {one.why}" for one in left[:MAX_TOLD])
    return shown + (f"; and {len(left) - MAX_TOLD} more" if len(left) > MAX_TOLD else "")


def _merged(suite: Suite) -> list[Case]:
    """Cases of one prompt as one row, held to the graders of all; one that wants another answer is left."""
    found: dict[str, Case] = {}
    for case in suite.cases:
        if not case.messages or not any(content.strip() for _, content in case.messages):
            suite.left.append(Left(case.place, "row", "its prompt is empty"))
            continue
        key = row_key([content for _, content in case.messages])
        before = found.get(key)
        if before is None:
            found[key] = case
        elif case.reference in (None, before.reference) or before.reference is None:
            graders = list(before.graders) + [one for one in case.graders if one not in before.graders]
            found[key] = Case(
                before.place,
                before.messages,
                before.reference or case.reference,
                tuple(graders),
                tuple(dict.fromkeys((*before.rubrics, *case.rubrics))),
                before.threshold if before.threshold == case.threshold else None,
            )
        else:
            suite.left.append(Left(case.place, "row", f"asks what {before.place} asks, and wants another answer"))
    return list(found.values())


def _common_rubrics(suite: Suite, cases: Sequence[Case]) -> list[str]:
    """Rubrics that every row has: a judge's criteria are those of the whole run. Others are listed as left."""
    common = [text for text in cases[0].rubrics if all(text in case.rubrics for case in cases)]
    for case in cases:
        suite.left += [
            Left(case.place, f"rubric {text[:60]!r}", "of some rows alone; a judge has the same criteria for all")
            for text in case.rubrics
            if text not in common
        ]
    return common


def _kind_and_metric(cases: Sequence[Case]) -> tuple[str, str]:
    """The task kind of the references; the kind's own metric where each row wants just its reference, else graders."""
    examples = tuple(
        Example((*(Message(role, text) for role, text in case.messages), Message("assistant", case.reference)),
                (len(case.messages), len(case.messages) + 1))
        for case in cases
        if case.reference is not None
    )  # fmt: skip
    kind = task_kind(examples, len(cases))[0] if len(examples) == len(cases) else "generate"
    is_plain = all([g["type"] for g in case.graders] in ([], ["equals"]) and not case.threshold for case in cases)
    if not is_plain:
        return kind, f"{METRIC}:score"
    if kind == "generate" and all(case.graders for case in cases):
        return kind, "exact_match"
    return kind, METRICS_BY_KIND[kind][0]


def _row(case: Case) -> dict[str, Any]:
    turns = [{"role": role, "content": content} for role, content in case.messages]
    return {"messages": [*turns, {"role": "assistant", "content": case.reference or NO_REFERENCE}]}


def _run_file(
    suite: Suite, cases: Sequence[Case], folder: Path, train: Path | None, models: Sequence[str], kind: str,
    metric: str, rubrics: Sequence[str], judge: ApiPrice | None,
) -> str:  # fmt: skip
    without = sum(case.reference is None for case in cases)
    lines = [
        f"# Written by 'shoestring import {suite.tool}' from {suite.source.name}: {len(cases)} rows.",
        *(f"# Not carried over: {one.place}: {one.what}: {one.why}" for one in suite.left[:MAX_TOLD]),
        *([f"# ... and {len(suite.left) - MAX_TOLD} more"] if len(suite.left) > MAX_TOLD else []),
        f"name: {run_name(suite.name)}",
        "",
        "task:",
        f"  kind: {kind}",
        f"  metric: {metric}" + ("  # the share of rows that pass all their graders" if METRIC in metric else ""),
        "  bar: 0.8  # yours to decide",
        "",
        "data:",
    ]
    if train is None:
        lines.append(f"  train: {ROWS}  # the held-out rows are split from it; with --train FILE all of it is held out")
    else:
        lines += [f"  train: {json.dumps(os.path.relpath(train, folder))}", f"  eval: {ROWS}"]
    if without:
        who = "the judge" if metric == "judge" else "graders"
        lines.append(f"  # {without} rows have no reference ('{NO_REFERENCE}' stands there): {who} alone score them")
    lines += [
        "",
        f"models: [{', '.join(json.dumps(model) for model in models)}]",
        "budget_usd: 10",
        *_judge(suite, rubrics, judge, without > 0),
    ]
    return "\n".join(line[:2000].replace("\r", " ") for line in lines) + "\n"


def _priced() -> dict[str, ApiPrice]:
    """OpenAI's models with a dated price: their address is known."""
    return {price.model: price for price in api_prices() if price.provider == "openai"}


def _judge_price(suite: Suite) -> ApiPrice | None:
    """The first of the judges that has a dated price."""
    priced = _priced()
    return next((priced[name] for one in suite.judges if (name := re.split("[:/]", one)[-1]) in priced), None)


def with_judge(suite: Suite, name: str) -> None:
    """Take this judge instead of those used there. Raises: BadInput where it has no dated price."""
    if name not in _priced():
        raise BadInput(f"--judge {name}: no dated price is known; choose of {', '.join(_priced())}")
    suite.judges.insert(0, name)


def _judge(suite: Suite, rubrics: Sequence[str], price: ApiPrice | None, lacks_references: bool) -> list[str]:
    """Section judge with the rubrics; a comment where the judge that was used there has no dated price."""
    if not rubrics:
        return []
    name = price.model if price else suite.judges[0] if suite.judges else "MODEL"
    into, out = (
        (price.usd_per_million_input_tokens, price.usd_per_million_output_tokens) if price else ("PRICE", "PRICE")
    )
    section = [
        "",
        "judge:",
        "  endpoints:",
        f"  - {{name: {json.dumps(name)}, base_url: https://api.openai.com/v1, model: {json.dumps(name)},",
        f"     usd_per_million_input_tokens: {into}, usd_per_million_output_tokens: {out}}}",
        "  criteria:",
        *(f"  - {json.dumps(text, ensure_ascii=False)}" for text in rubrics),
        *(["  use_reference: false"] if lacks_references else []),
    ]
    if price is None:
        return ["# The rubrics want a judge: fill in its model and prices, and take the number signs away.",
                *(f"# {line}" for line in section[1:])]  # fmt: skip
    return section


def run_name(text: str) -> str:
    """A name that a run may have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
    return name or "imported"


def read_text(path: Path) -> str:
    """Raises: BadInput."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def read_yaml(path: Path) -> Any:
    """The content of a YAML or JSON file. Raises: BadInput."""
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ConfigError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise BadInput(f"{where}: not valid YAML: {problem or str(error).splitlines()[0]}") from error


def rendered(template: str, values: dict[str, Any]) -> str:
    """A template with its {{ names }} filled in; names that are not there are empty, as promptfoo and OpenAI have it.

    Raises: ValueError for what is more than that.
    """
    from jinja2 import ChainableUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=ChainableUndefined, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    try:
        return environment.from_string(template).render(**values)
    except (TemplateError, TypeError, ArithmeticError) as error:
        raise ValueError(f"its template cannot be filled in: {error}") from error
