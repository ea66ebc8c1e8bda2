"""From a teacher's answers to rows: checked, agreed upon, without repeats of train or held-out rows; all accounted for.

kept + rejected = generated, and the cost of their requests = what the teacher was paid.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import ShoestringError
from ...messages import Example, Message, Prompt, read_answer
from ...records import Completion, Progress, no_progress, to_json
from ..decode import shorten
from ..near import near_rows
from ..normalise import meaning_key, normalise_prompt, tools_mark
from ..turns import as_text
from .agreement import Agreement, agreement
from .asking import Asking, Teacher
from .calls import call_problem, commonest_tools, with_same_tools
from .prompts import ANSWER, ATTRIBUTES, answer_prompt, pairs_prompt
from .replies import bare, read_items
from .shape import AnswerShape
from .texts import Text

MAX_ITEMS = 5  # examples one request asks for
NUM_SHOTS = 4  # seeds one request shows
NUM_AVOIDED = 6  # earlier inputs one request names
ROUND_REQUESTS = 8  # then look at what came back before more is asked: a budget ends in rows, not in candidates
MAX_OVERSHOOT = 5  # at most so many times the requests that would do if every example were kept
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Task:
    """What is to be made. samples and agree: answers asked for one input at most, and how many must agree.

    similarity: from which likeness on free text agrees. shots: examples before each input that is answered.
    system: the system message of every row, or empty.
    """

    kind: str
    instruction: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    shots: tuple[Example, ...]
    samples: int
    agree: int
    attributes: dict[str, list[str]]
    system: str = ""
    seed: int = 0
    similarity: float = 0.45


@dataclass
class Candidate:
    """One example on its way. answers: those that could be right, as (text, what it is compared by)."""

    input: str
    about: dict[str, Any]  # its provenance so far
    passage: str = ""
    tools: str = ""  # declared, as of an Example
    reply: str = ""  # what could not be read
    said: str = ""  # the first answer that cannot be right
    answers: list[tuple[str, str]] = field(default_factory=list)
    num_asked: int = 0
    num_prompts: int = 0  # of its own requests for an answer
    first_problem: tuple[str, str] | None = None
    problem: tuple[str, str] | None = None
    cost_usd: float | None = 0.0
    made_at: str = ""
    agreed: Agreement = field(default_factory=Agreement)

    def paid(self, completion: Completion, share: int = 1) -> None:
        self.cost_usd = (self.cost_usd or 0.0) + completion.cost_usd / share
        self.made_at = max(self.made_at, completion.made_at)


@dataclass(frozen=True)
class Made:
    """rows and rejected are JSON-ready; rejected ones carry code and evidence. ended: why asking stopped early."""

    rows: tuple[dict[str, Any], ...]
    rejected: tuple[dict[str, Any], ...]
    cost_usd: float
    notes: tuple[str, ...]
    ended: ShoestringError | None = None


class Maker:
    """One synthesis: the task, the teacher, and what was kept so far."""

    def __init__(
        self, task: Task, teacher: Teacher | None, budget_usd: float = math.inf, progress: Progress = no_progress
    ) -> None:
        self.task, self.teacher, self.progress = task, teacher, progress
        self.asking = Asking(teacher, budget_usd, progress) if teacher else None
        self.shape = AnswerShape(task.train, task.kind, task.labels)
        self.done: list[Candidate] = []
        self.notes: list[str] = []

    # ---- three ways to come by candidates ------------------------------------------------------

    def pairs(self, num_rows: int, mode: str, passages: Sequence[Text] = ()) -> Made:
        """Inputs with answers, written by the teacher after seeds, about passages, or from the instruction alone."""
        assert self.asking is not None
        num_items = self.num_items(num_rows)
        most = MAX_OVERSHOOT * math.ceil(num_rows / num_items)
        num_asked = 0
        while (need := num_rows - self._num_kept()) > 0 and self.asking.ended is None:
            num_requests = min(math.ceil(need / num_items), ROUND_REQUESTS, most - num_asked)
            if num_requests <= 0:
                self.notes.append(
                    f"stopped after {num_asked} requests, {MAX_OVERSHOOT} times what {num_rows} rows need: the teacher "
                    "repeats itself or its answers are refused; see rejected.jsonl, give more seeds or synth.attributes"
                )
                break
            self.progress("rows kept", self._num_kept(), num_rows)
            requests = self.pair_requests(num_asked, num_requests, num_items, passages)
            num_asked += num_requests
            fresh: list[Candidate] = []
            completions = self.asking.fresh([prompt for prompt, _ in requests])
            for (_, like), completion in zip(requests, completions, strict=True):
                if completion is not None:
                    fresh += self._read(replace(like, about={"from": mode, **like.about}), completion)
            for candidate in fresh:
                if candidate.problem is None and not candidate.answers:
                    candidate.problem = candidate.first_problem
            self._refuse_repeats(fresh)
            self._settle(fresh)
        return self._made()

    def answers(self, num_rows: int, inputs: Sequence[Text]) -> Made:
        """The teacher's answers to inputs, until num_rows are kept."""
        assert self.asking is not None
        about = {"from": "inputs", "template": ANSWER, "seed_ids": [shot.id for shot in self.task.shots]}
        tools = commonest_tools(self.task.train)
        candidates = [Candidate(t.text, {**about, "input": f"{t.source} line {t.line}"}, tools=tools) for t in inputs]
        self._refuse_repeats(candidates)
        block = ROUND_REQUESTS * MAX_ITEMS
        start = 0
        while start < len(candidates) and (need := num_rows - self._num_kept()) > 0 and self.asking.ended is None:
            self.progress("rows kept", self._num_kept(), num_rows)
            some = candidates[start : start + min(block, need)]
            start += len(some)
            self._settle(some)
        return self._made()

    def imported(self, candidates: list[Candidate]) -> Made:
        """Examples that another program made, through the same checks."""
        for candidate in candidates:
            answers, candidate.answers = candidate.answers, []
            for text, _ in answers:
                self._count(candidate, text, is_whole=True)
        self._refuse_repeats(candidates)
        self._settle(candidates)
        return self._made()

    # ---- requests -----------------------------------------------------------------------------

    def num_items(self, num_rows: int) -> int:
        per_label = math.ceil(num_rows / len(self.task.labels)) if self.task.labels else num_rows
        return max(1, min(MAX_ITEMS, per_label))

    def pair_requests(
        self, first: int, num_requests: int, num_items: int, passages: Sequence[Text]
    ) -> list[tuple[Prompt, Candidate]]:
        """Requests of a round, each with what its candidates have in common; other seeds and attributes in each."""
        task = self.task
        kept = [c for c in self.done if c.problem is None]
        per_label = Counter(e.completion.strip() for e in task.train)
        per_label.update(c.agreed.answer for c in kept)
        attributes = task.attributes or ATTRIBUTES
        requests = []
        is_plain = not any(seed.tools for seed in task.train)
        for number in range(first, first + num_requests):
            draw = random.Random(f"{task.seed}:{number}")
            label = None
            if task.labels:
                label = min(task.labels, key=lambda name: per_label[name])
                per_label[label] += num_items
            tools = "" if is_plain else draw.choice(task.train).tools
            shots = self._shots(draw, label, task.train if is_plain else with_same_tools(task.train, tools))
            passage = passages[number % len(passages)] if passages else None
            drawn = {name: draw.choice(list(values)) for name, values in attributes.items()}
            avoid = [c.input for c in draw.sample(kept, min(NUM_AVOIDED, len(kept)))]
            prompt, template = pairs_prompt(
                task.instruction, shots, num_items, label=label, attributes=drawn, avoid=avoid,
                passage=passage.text if passage else "", is_json=task.kind == "extract",
                tools=tools,
            )  # fmt: skip
            about: dict[str, Any] = {"template": template, "seed_ids": [s.id for s in shots], "attributes": drawn}
            if passage:
                about["document"] = f"{passage.source} line {passage.line}"
            requests.append((prompt, Candidate("", about, passage.text if passage else "", tools)))
        return requests

    def _shots(self, draw: random.Random, label: str | None, train: Sequence[Example]) -> list[Example]:
        """Seeds to show: of the label wanted where there is one and it has seeds, two others for contrast."""
        if label is None:
            return draw.sample(train, min(NUM_SHOTS, len(train)))
        same = [e for e in train if e.completion.strip() == label]
        others = [e for e in train if e.completion.strip() != label]
        chosen = draw.sample(same, min(NUM_SHOTS - 1, len(same)))
        return chosen + draw.sample(others, min(NUM_SHOTS - len(chosen), len(others)))

    def _read(self, like: Candidate, completion: Completion) -> list[Candidate]:
        items = read_items(completion.text, completion.stopped)
        found = []
        for item in items:
            if isinstance(item, dict):
                candidate = replace(like, input=as_text(item["input"]).strip(), about=dict(like.about), answers=[])
                self._count(candidate, self.shape.tidy(item["answer"]), is_whole=True)
            else:
                candidate = replace(like, about=dict(like.about), answers=[], reply=completion.text, problem=item)
            candidate.paid(completion, len(items))
            found.append(candidate)
        return found

    def answer_request(self, candidate: Candidate) -> Prompt:
        """What a candidate's answer is asked with; the same shots for all inputs with the same tools."""
        task = self.task
        shots: Sequence[Example] = task.shots
        if any(seed.tools for seed in task.train):
            same = with_same_tools(task.shots, candidate.tools) or with_same_tools(task.train, candidate.tools)
            shots = same[:NUM_SHOTS]
        return answer_prompt(task.instruction, task.labels, shots, candidate.input, candidate.passage, candidate.tools)

    # ---- checks -------------------------------------------------------------------------------

    def _settle(self, fresh: list[Candidate]) -> None:
        """Each candidate kept or refused, with its reason."""
        self._agree([c for c in fresh if c.problem is None])
        for candidate in fresh:
            if candidate.problem is None and candidate.passage and self.task.kind != "math":
                candidate.problem = _unsupported(candidate)
        self.done += fresh

    def _refuse_repeats(self, fresh: Sequence[Candidate]) -> None:
        """Inputs that are none, or say what a held-out row, a training row, or a row made before says already."""
        rest = []
        for candidate in fresh:
            candidate.problem = candidate.problem or self.shape.input_problem(candidate.input)
            if candidate.problem is None:
                rest.append(candidate)
        # Held-out rows first: of several rows a repeat is alike, the earliest is named.
        earlier = [*self.task.eval, *self.task.train]
        made = [c for c in self.done if c.problem is None]
        places = [f"{e.source} line {e.line}" for e in earlier] + ["a row made before"] * (len(made) + len(rest))
        said = [e.user_text for e in earlier] + [c.input for c in (*made, *rest)]
        tools = [e.tools for e in earlier] + [c.tools for c in (*made, *rest)]
        texts = [text + tools_mark(declared) for text, declared in zip(said, tools, strict=True)]
        start = len(earlier) + len(made)
        first_with: dict[str, int] = {}
        found: dict[int, tuple[int, str]] = {}
        for index, text in enumerate(texts):
            first = first_with.setdefault(normalise_prompt(text), index)
            if first < index >= start:
                found[index] = (first, "")
        # Answers are left out of the comparison: what only differs in its answer teaches nothing either.
        near = near_rows(texts, [""] * len(texts), kind="classify", progress=no_progress).duplicates
        for pair in near:
            if pair.second >= start:
                found.setdefault(pair.second, (pair.first, f"but for {pair.evidence}: "))
        for index, (partner, how) in found.items():
            evidence = f"{places[partner]} asks the same, {how}{shorten(said[partner], 200)}"
            code = "near_duplicate" if how else "exact_duplicate"
            rest[index - start].problem = ("leak_into_eval" if partner < len(self.task.eval) else code, evidence)

    def _agree(self, candidates: Sequence[Candidate]) -> None:
        """Ask until enough answers agree or no longer can; refuse those whose answers do not."""
        task = self.task
        while self.asking is not None:
            open_ones = [
                c
                for c in candidates
                if c.agreed.votes < task.agree and c.agreed.votes + task.samples - c.num_asked >= task.agree
            ]
            if not open_ones or self.asking.ended is not None:
                break
            requests = [(self.answer_request(c), c.num_prompts) for c in open_ones]
            for candidate, completion in zip(open_ones, self.asking.ask(requests), strict=True):
                if completion is not None:
                    candidate.num_prompts += 1
                    candidate.paid(completion)
                    self._count(candidate, self.shape.tidy(bare(completion.text)), is_whole=completion.stopped)
        for c in candidates:
            # What another program made has the answers it has; a single one has nothing to agree with.
            wanted = task.agree if self.asking is not None else min(task.agree, c.num_asked)
            if c.agreed.votes >= wanted:
                continue
            if self.asking is not None and self.asking.ended is not None and c.num_asked < task.samples:
                c.problem = ("unconfirmed", f"asking ended after {c.num_asked} of {task.samples} answers")
            elif not c.answers and c.first_problem:
                c.problem = c.first_problem
            else:
                said = Counter(key for _, key in c.answers).most_common(3)
                shown = "; ".join(f"{n} x {key[:80]!r}" for key, n in said)
                c.problem = (
                    "low_agreement",
                    f"{c.agreed.votes} of {c.num_asked} answers agree, {wanted} must: {shown}",
                )

    def _count(self, candidate: Candidate, answer: str, *, is_whole: bool) -> None:
        """One more answer of a candidate; one that cannot be right has no vote."""
        candidate.num_asked += 1
        answer = read_answer(answer, candidate.tools).text
        problem = self.shape.answer_problem(answer) or call_problem(answer, candidate.tools)
        if problem is None and not is_whole:
            problem = ("truncated_reply", f"the token limit cut it: …{answer[-80:]}")
        if problem is None:
            candidate.answers.append((answer, meaning_key(answer, self.task.kind)))
            candidate.agreed = agreement(candidate.answers, self.task.kind, self.task.similarity)
        else:
            candidate.first_problem = candidate.first_problem or problem
            candidate.said = candidate.said or answer

    # ---- results ------------------------------------------------------------------------------

    def _num_kept(self) -> int:
        return sum(c.problem is None for c in self.done)

    def _made(self) -> Made:
        rows = [self._row(c) for c in self.done if c.problem is None]
        rejected = []
        for c in self.done:
            if c.problem is not None:
                code, evidence = c.problem
                rejected.append({"code": code, "evidence": evidence, "reply": c.reply, **self._row(c)})
        assert len(rows) + len(rejected) == len(self.done)
        return Made(
            rows=tuple(rows),
            rejected=tuple(rejected),
            cost_usd=sum(c.cost_usd or 0.0 for c in self.done),
            notes=tuple(self.notes),
            ended=self.asking.ended if self.asking else None,
        )

    def _row(self, c: Candidate) -> dict[str, Any]:
        system = [Message("system", self.task.system)] if self.task.system else []
        answer = read_answer(c.agreed.answer or c.said, c.tools)
        teacher = {"teacher": self.teacher.model, "endpoint": self.teacher.host} if self.teacher else {}
        return {
            "messages": to_json([*system, Message("user", c.input), answer]),
            **({"tools": json.loads(c.tools)} if c.tools else {}),
            "provenance": {
                "origin": "synthetic",
                **teacher,
                "made_at": c.made_at or None,
                **c.about,
                "samples": c.num_asked,
                "agree": c.agreed.votes,
                **({} if c.agreed.similarity is None else {"similarity": c.agreed.similarity}),
                "cost_usd": c.cost_usd,
            },
        }


def _unsupported(candidate: Candidate) -> tuple[str, str] | None:
    """A number of the answer that stands neither in the passage nor in the input."""
    given = set(NUMBER.findall(candidate.passage + " " + candidate.input))
    missing = [number for number in NUMBER.findall(candidate.agreed.answer) if number not in given]
    return ("unsupported_number", f"{missing[0]} stands neither in the passage nor in the input") if missing else None
