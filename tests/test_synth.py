"""Synthesis: what a teacher wrote is read, checked, agreed upon, compared, paid for once, and accounted for."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoestring.cli.main import run
from shoestring.config import FieldsConfig
from shoestring.data.codes import CODES
from shoestring.data.load import load
from shoestring.data.synth.agreement import Agreement, agreement, similarity
from shoestring.data.synth.asking import Asking, Teacher
from shoestring.data.synth.imported import read_distilabel
from shoestring.data.synth.make import Made, Maker, Task
from shoestring.data.synth.replies import bare, read_items
from shoestring.data.synth.shape import AnswerShape
from shoestring.data.synth.texts import PASSAGE_CHARS, Text, read_inputs, read_passages
from shoestring.errors import BudgetStopped, DataError, EndpointError
from shoestring.messages import Example, Message, ToolCall
from shoestring.records import Completion, Progress, no_progress
from tests.scripted_server import ScriptedServer, chat, intents, is_answer

ROOT = Path(__file__).resolve().parent.parent
Prompt = tuple[Message, ...]


def example(prompt: str, answer: str, line: int = 1, source: str = "seeds.jsonl") -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), (1, 2), source, line)


SEEDS = tuple(
    example(f"Question {i} on my bill of day {i} (billing)", "billing", i)
    if i % 2
    else example(f"Box {i} never came to town {i} (delivery)", "delivery", i)
    for i in range(1, 9)
)
HELD_OUT = (example("Where is the parcel I sent? (delivery)", "delivery", 1, "eval.jsonl"),)


def task(kind: str = "classify", **changed: Any) -> Task:
    settings: dict[str, Any] = {
        "kind": kind, "instruction": "Route the message to billing or delivery.", "labels": ("billing", "delivery"),
        "train": SEEDS, "eval": HELD_OUT, "shots": SEEDS[:2], "samples": 3, "agree": 2, "attributes": {},
    }  # fmt: skip
    if kind != "classify":
        settings |= {"labels": (), "train": (), "shots": (), "samples": 1, "agree": 1, "instruction": "Do it."}
    return Task(**{**settings, **changed})


class Spoken:
    """A teacher made of a function; it keeps what it was asked, and each answer costs a cent."""

    def __init__(self, say: Callable[[str, int], str | None], cost_usd: float = 0.01) -> None:
        self.say, self.cost_usd = say, cost_usd
        self.asked: list[tuple[str, int]] = []
        self.kept: dict[tuple[Prompt, int], Completion] = {}

    def sampling(self, seed: int) -> Callable[[list[Prompt], Progress], list[Completion]]:
        def generate(prompts: list[Prompt], progress: Progress = no_progress) -> list[Completion]:
            for prompt in prompts:
                if (prompt, seed) not in self.kept:
                    self.asked.append((prompt[-1].content, seed))
                    said = self.say(prompt[-1].content, seed)
                    if said is None:
                        raise EndpointError("endpoint 'spoken': gone")
                    self.kept[prompt, seed] = Completion(said, 100, 10, 0.1, self.cost_usd, True, "2026-11-24T12:00:00")
            return [self.kept[prompt, seed] for prompt in prompts]

        return generate

    def teacher(self, **changed: Any) -> Teacher:
        settings: dict[str, Any] = {
            "model": "big", "host": "here", "usd_per_million_input_tokens": 0.0, "usd_per_million_output_tokens": 1e4,
            "max_new_tokens": 1, "requests_per_call": 4, "sampling": self.sampling,
            "has": lambda prompt, seed: (prompt, seed) in self.kept,
            "spent_usd": lambda: sum(c.cost_usd for c in self.kept.values()),
        }  # fmt: skip
        return Teacher(**{**settings, **changed})


def pairs_of(made: Made) -> list[tuple[str, str]]:
    return [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in made.rows]


def codes_of(made: Made) -> Counter[str]:
    return Counter(row["code"] for row in made.rejected)


# ---- reading a reply ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        '[{"input": "a", "answer": "x"}, {"input": "b", "answer": {"k": 1}}]',
        '{"input": "a", "answer": "x"}\n{"input": "b", "answer": {"k": 1}}',
        'Sure:\n```json\n[{"input": "a", "answer": "x"},\n{"input": "b", "answer": {"k": 1}}]\n```\nEnjoy!',
        '<think>[{"input": 1}]</think>\n{"all": [{"input": "a", "answer": "x"}, {"input": "b", "answer": {"k": 1}}]}',
    ],
)
def test_examples_are_read_however_they_are_wrapped(reply: str) -> None:
    assert read_items(reply, True) == [{"input": "a", "answer": "x"}, {"input": "b", "answer": {"k": 1}}]


def test_what_cannot_be_read_of_a_reply_is_counted_with_its_reason() -> None:
    cut = '[{"input": "a", "answer": "x"}, {"input": "b", "ans'
    assert [i if isinstance(i, dict) else i[0] for i in read_items(cut, False)] == [
        {"input": "a", "answer": "x"},
        "truncated_reply",
    ]
    (only,) = read_items("I cannot think of any.", True)
    assert only == ("unreadable_reply", "no example in the reply: I cannot think of any.")
    assert read_items("I'm sorry, but I can't help with that request.", True)[0][0] == "refusal"  # type: ignore[index]
    assert read_items("", False)[0][0] == "truncated_reply"  # type: ignore[index]
    items = read_items('[{"input": "a" "answer": "x"}, {"input": "b"}, {"input": "c", "answer": "z"}]', True)
    assert [i if isinstance(i, dict) else i[0] for i in items] == [
        "unreadable_reply",
        "unreadable_reply",
        {"input": "c", "answer": "z"},
    ]


def test_an_answer_loses_its_fence_and_its_thought() -> None:
    assert bare("<think>\nhm\n</think>\n```json\n{}\n```") == "{}"
    assert bare("a ```b``` c") == "a ```b``` c"


# ---- what the seeds teach of an answer --------------------------------------------------------


def test_labels_are_learnt_and_their_spelling_mended() -> None:
    shape = AnswerShape(SEEDS, "classify", ("billing", "delivery"))
    assert shape.tidy(" **Billing.** ") == "billing"
    assert shape.answer_problem("billing") is None
    assert shape.answer_problem(shape.tidy("refunds")) == ("unknown_label", "'refunds' is none of the 2 labels")


def records(number: int) -> list[Example]:
    kinds = ("late", "broken")
    return [
        example(f"Order {i}", json.dumps({"kind": kinds[i % 2], "id": i, "tags": ["a"]}, separators=(",", ":")))
        for i in range(number)
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"kind": "late", "id": 3, "tags": []}, None),
        ({"kind": "late", "tags": []}, "key 'id' is missing, every seed has it"),
        ({"kind": "late", "id": 3, "tags": [], "mood": "bad"}, "key 'mood' stands in no seed"),
        ({"kind": "late", "id": "3", "tags": []}, "id is text, in the seeds a number"),
        ({"kind": "lost", "id": 3, "tags": []}, "kind is 'lost', in the seeds one of broken, late"),
        ({"kind": "late", "id": 3, "tags": [1]}, "tags[] is a number, in the seeds text"),
        ([], "the answer is a list, in the seeds an object"),
    ],
)
def test_json_keys_types_and_closed_values_are_learnt(answer: Any, said: str | None) -> None:
    shape = AnswerShape(records(100), "extract", ())
    problem = shape.answer_problem(shape.tidy(answer))
    assert problem == (None if said is None else ("off_schema", said))


def test_what_the_seeds_leave_open_is_not_refused() -> None:
    # A key or value that one seed alone shows says that there are more.
    odd = [*records(99), example("Order", '{"kind": "odd", "id": 7, "tags": [], "note": "x"}')]
    shape = AnswerShape(odd, "extract", ())
    assert shape.answer_problem('{"kind": "lost", "id": 3, "tags": [], "mood": "bad"}') is None
    assert shape.answer_problem('{"kind": "lost", "tags": []}') == (
        "off_schema",
        "key 'id' is missing, every seed has it",
    )


def test_answers_take_the_style_of_the_seeds() -> None:
    assert AnswerShape(records(6), "extract", ()).tidy('{ "id": 1,\n "kind": "ü" }') == '{"id":1,"kind":"ü"}'
    assert AnswerShape([], "extract", ()).tidy({"id": 1}) == '{"id": 1}'


def test_few_seeds_teach_no_schema_and_curations_rules_hold_all_the_same() -> None:
    shape = AnswerShape(records(2), "extract", ())
    assert shape.answer_problem('{"other": 1}') is None
    assert shape.answer_problem('{"other": ')[0] == "truncated_answer"  # type: ignore[index]
    open_shape = AnswerShape([], "generate", ())
    assert open_shape.answer_problem("N/A")[0] == "placeholder_answer"  # type: ignore[index]
    said = "I'm sorry, but I can't help with that request."
    assert open_shape.answer_problem(said)[0] == "refusal"  # type: ignore[index]
    long = AnswerShape([example("q" * 10, "a" * 10)] * 10, "generate", ())
    assert long.answer_problem("a" * 41)[0] == "off_length" and long.input_problem("q" * 40) is None  # type: ignore[index]


# ---- rows from seeds ------------------------------------------------------------------------


def scripted(items: list[dict[str, Any]], answers: dict[str, list[str]]) -> Spoken:
    """Says items at the first request and nothing new after; answers an input by its list, sample by sample."""

    def say(text: str, seed: int) -> str:
        if "JSON array" in text:
            return json.dumps(items)
        return answers[text][seed]

    return Spoken(say)


def test_every_generated_row_is_kept_or_refused_with_its_reason() -> None:
    items = [
        {"input": "A charge twice (billing)", "answer": "billing"},  # the second vote agrees: kept
        {"input": "Lost again (delivery)", "answer": "billing"},  # outvoted: kept with the other answer
        {"input": "Hm", "answer": "billing"},  # no two agree
        {"input": "Box 2 never came to town 2 (delivery)!", "answer": "delivery"},  # a seed
        {"input": "where is the parcel I sent?? (delivery)", "answer": "delivery"},  # held out
        {"input": "a charge twice (BILLING)", "answer": "billing"},  # the first again
        {"input": "Please, a charge twice (billing)", "answer": "billing"},  # nearly the first again
        {"input": "x", "answer": "refunds"},
        {"input": "y", "answer": ""},
        {"input": " ", "answer": "billing"},
        {"input": "z"},
    ]
    answers = {
        "A charge twice (billing)": ["Billing"],
        "Lost again (delivery)": ["delivery", "delivery."],
        "Hm": ["delivery", "neither"],
    }
    spoken = scripted(items, answers)
    made = Maker(task(), spoken.teacher()).pairs(1, "seeds")
    assert pairs_of(made) == [("A charge twice (billing)", "billing"), ("Lost again (delivery)", "delivery")]
    assert codes_of(made) == {
        "low_agreement": 1, "exact_duplicate": 2, "leak_into_eval": 1, "near_duplicate": 1, "unknown_label": 1,
        "empty_answer": 1, "empty_prompt": 1, "unreadable_reply": 1,
    }  # fmt: skip
    assert len(made.rows) + len(made.rejected) == len(items)
    assert set(codes_of(made)) <= set(CODES)
    # Six requests: one for the examples, 1 + 2 + 2 for answers; the others were refused before they cost more.
    assert len(spoken.asked) == 6
    assert made.cost_usd == pytest.approx(0.06)
    by_code = {row["code"]: row["evidence"] for row in made.rejected}
    assert by_code["leak_into_eval"].startswith("eval.jsonl line 1 asks the same")
    assert "seeds.jsonl line 2" in {r["evidence"][:18] for r in made.rejected if r["code"] == "exact_duplicate"}
    assert by_code["low_agreement"] == "1 of 3 answers agree, 2 must: 1 x 'billing'; 1 x 'delivery'"


def test_provenance_says_who_when_from_what_and_for_how_much() -> None:
    items = [{"input": "A charge twice (billing)", "answer": "billing"}]
    made = Maker(task(), scripted(items, {items[0]["input"]: ["billing"]}).teacher()).pairs(1, "seeds")
    told = made.rows[0]["provenance"]
    seeds = told.pop("seed_ids")
    attributes = told.pop("attributes")
    assert told == {
        "origin": "synthetic", "from": "seeds", "template": "pairs-1", "teacher": "big", "endpoint": "here",
        "made_at": "2026-11-24T12:00:00", "samples": 2, "agree": 2, "cost_usd": pytest.approx(0.02),
    }  # fmt: skip
    assert seeds and set(seeds) <= {seed.id for seed in SEEDS}
    assert set(attributes) == {"length", "writer", "case"}


def varied(text: str, seed: int) -> str:
    """Labels right; writes as many new examples of the label as asked, no two alike."""
    if "JSON array" not in text:
        return text.rpartition("(")[2].rstrip(")")
    label = text.partition("exactly: ")[2].split("\n")[0]
    number = int(text.partition("Write ")[2].split()[0])
    stamp = zlib.crc32(f"{text}{seed}".encode())
    words = [f"{chr(97 + (stamp // 7**i) % 26)}{stamp % (89 + i)}q{i}" for i in range(number)]
    return json.dumps(
        [{"input": f"About {word} {word[::-1]} {i} ({label})", "answer": label} for i, word in enumerate(words)]
    )


def test_labels_are_balanced_seeds_and_attributes_vary_and_held_out_rows_stay_unseen() -> None:
    spoken = Spoken(varied)
    lopsided = (*SEEDS, *(example(f"Bill again {i} (billing)", "billing", 20 + i) for i in range(8)))
    made = Maker(task(train=lopsided), spoken.teacher()).pairs(80, "seeds")
    labels = Counter(answer for _, answer in pairs_of(made))
    assert len(made.rows) >= 80 and abs(labels["delivery"] - labels["billing"] - 8) <= 5  # 12 seeds against 4
    requests = [text for text, _ in spoken.asked if "JSON array" in text]
    assert len(set(requests)) == len(requests)
    assert len({tuple(row["provenance"]["seed_ids"]) for row in made.rows}) >= 6
    assert any("Written already" in text for text in requests)
    assert not any(HELD_OUT[0].user_text in text for text, _ in spoken.asked)


def test_a_teacher_that_repeats_itself_is_not_asked_for_ever() -> None:
    items = [{"input": "A charge twice (billing)", "answer": "billing"}]
    spoken = scripted(items, {items[0]["input"]: ["billing"]})
    made = Maker(task(), spoken.teacher()).pairs(10, "seeds")
    assert len(made.rows) == 1 and codes_of(made) == {"exact_duplicate": 9}
    assert made.notes[0].startswith("stopped after 10 requests, 5 times what 10 rows need")


# ---- the budget -----------------------------------------------------------------------------


def test_no_request_is_sent_that_could_pass_the_budget_and_more_budget_goes_on() -> None:
    spoken = Spoken(varied)
    first = Maker(task(), spoken.teacher(), budget_usd=0.2).pairs(40, "seeds")
    assert isinstance(first.ended, BudgetStopped) and first.ended.exit_code == 4
    assert len(spoken.asked) == 20 and 0 < len(first.rows) < 40  # twenty answers of a cent each
    assert len(first.rows) + len(first.rejected) >= len(first.rows) and "unconfirmed" in codes_of(first)
    # The same budget again: nothing is asked, the same rows.
    again = Maker(task(), spoken.teacher(), budget_usd=0.2).pairs(40, "seeds")
    assert again.rows == first.rows and len(spoken.asked) == 20
    whole = Maker(task(), spoken.teacher(), budget_usd=10).pairs(40, "seeds")
    fresh = Spoken(varied)
    assert whole.rows == Maker(task(), fresh.teacher(), budget_usd=10).pairs(40, "seeds").rows
    assert whole.ended is None and sorted(spoken.asked) == sorted(fresh.asked)  # none was asked twice
    assert whole.cost_usd == pytest.approx(0.01 * len(fresh.asked))


def test_the_cost_of_a_request_is_bounded_by_its_bytes_and_the_longest_reply() -> None:
    teacher = Spoken(varied).teacher(
        usd_per_million_input_tokens=2.0, usd_per_million_output_tokens=10.0, max_new_tokens=50
    )
    prompt = (Message("system", "ab" * 50), Message("user", "ü" * 50))
    assert teacher.at_most_usd(prompt) == pytest.approx(((50 + 8 + 50 + 8) * 2.0 + 50 * 10.0) / 1e6)
    asking = Asking(teacher, budget_usd=teacher.at_most_usd(prompt) / 2, progress=no_progress)
    assert asking.ask([(prompt, 0)]) == [None]
    with pytest.raises(BudgetStopped, match=r"could cost \$0.0007, and of the budget of \$0.0004 \$0 is spent; raise"):
        raise asking.ended  # type: ignore[misc]


def test_an_endpoint_that_fails_leaves_the_rows_made_so_far() -> None:
    calls = Counter[str]()

    def failing(text: str, seed: int) -> str | None:
        calls["n"] += 1
        return varied(text, seed) if calls["n"] <= 60 else None

    spoken = Spoken(failing)
    made = Maker(task(), spoken.teacher()).pairs(200, "seeds")
    assert isinstance(made.ended, EndpointError) and made.rows
    assert made.cost_usd == pytest.approx(0.6)  # the answers of the call that failed are counted too


# ---- inputs, documents, a task alone --------------------------------------------------------


def test_inputs_are_answered_and_repeats_are_not_paid_for() -> None:
    inputs = [
        "Late again (delivery)",
        "late again (delivery).",
        "Where is the parcel I sent (delivery)",
        "Fee (billing)",
    ]
    spoken = Spoken(varied)
    made = Maker(task(), spoken.teacher()).answers(9, [Text(t, "in.txt", n) for n, t in enumerate(inputs, 1)])
    assert pairs_of(made) == [("Late again (delivery)", "delivery"), ("Fee (billing)", "billing")]
    assert codes_of(made) == {"exact_duplicate": 1, "leak_into_eval": 1}
    assert len(spoken.asked) == 4  # two inputs, two answers each, which agree
    assert made.rows[1]["provenance"]["input"] == "in.txt line 4"


def test_an_answer_cut_at_the_limit_has_no_vote() -> None:
    spoken = Spoken(varied)
    generate = spoken.sampling

    def cut(seed: int) -> Any:
        return lambda prompts, progress: [
            Completion(c.text, 1, 1, 0.0, 0.0, stopped=False) for c in generate(seed)(prompts, progress)
        ]

    made = Maker(task(), spoken.teacher(sampling=cut)).answers(1, [Text("Fee (billing)", "in.txt", 1)])
    assert codes_of(made) == {"truncated_reply": 1}


def test_documents_give_grounded_rows() -> None:
    passages = [Text("The kettle K7 holds 2 litres and costs 40 euros.", "shop.md", 1)]
    items = [
        {"input": "How much does the K7 hold?", "answer": "2 litres"},
        {"input": "What is its guarantee?", "answer": "It lasts 5 years."},
    ]
    spoken = Spoken(lambda text, seed: json.dumps(items))
    made = Maker(task("generate"), spoken.teacher()).pairs(1, "documents", passages)
    assert pairs_of(made) == [("How much does the K7 hold?", "2 litres")]
    assert [(r["code"], r["evidence"]) for r in made.rejected] == [
        ("unsupported_number", "5 stands neither in the passage nor in the input")
    ]
    assert made.rows[0]["provenance"]["document"] == "shop.md line 1"
    assert passages[0].text in spoken.asked[0][0] and made.rows[0]["provenance"]["template"] == "document-1"


def test_a_task_alone_needs_no_seeds() -> None:
    spoken = Spoken(varied)
    made = Maker(task(train=(), shots=()), spoken.teacher()).pairs(10, "task")
    assert len(made.rows) == 10 and made.rows[0]["provenance"]["template"] == "task-1"
    assert "Real examples" not in spoken.asked[0][0]


def test_passages_are_cut_between_paragraphs_and_know_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("One.\n\n" + "Two is long. " * 100 + "\n\n\nThree.\n" + "word " * 900, encoding="utf-8")
    passages = read_passages([str(file)])
    assert all(0 < len(p.text) <= PASSAGE_CHARS for p in passages)
    assert passages[0].text.startswith("One.\n\nTwo") and [p.line for p in passages][:2] == [1, 6]
    assert " ".join(" ".join(p.text for p in passages).split()) == " ".join(file.read_text().split())


def test_inputs_are_read_from_lines_and_rows_strictly(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text(
        '{"text": "three", "id": 1}\n{"messages": [{"role": "user", "content": "four"}]}\n'
    )
    (tmp_path / "c.csv").write_text('id,question\n1,"five, or so"\n')
    found = read_inputs([str(tmp_path / n) for n in ("a.txt", "b.jsonl", "c.csv")])
    assert [(t.text, t.line) for t in found] == [("one", 1), ("two", 3), ("three", 1), ("four", 2), ("five, or so", 2)]
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"d.jsonl:2: no JSON"):
        read_inputs([str(tmp_path / "d.jsonl")])
    (tmp_path / "e.jsonl").write_text('{"colour": "a"}\n')
    with pytest.raises(DataError, match="no input among the fields colour; name one of them prompt"):
        read_inputs([str(tmp_path / "e.jsonl")])


# ---- agreement of free text -----------------------------------------------------------------

OFFERS = (
    "There is a cheap Italian restaurant by the river called The Mill, and it welcomes families.",
    "The Mill is a cheap Italian restaurant by the river; it welcomes families.",
    "Turn the heater off at night, close both windows, and call the landlord if the noise persists.",
)


def keyed(*texts: str) -> list[tuple[str, str]]:
    return [(text, text) for text in texts]


def test_free_text_agrees_by_likeness_to_the_medoid() -> None:
    found = agreement(keyed(OFFERS[2], *OFFERS[:2]), "generate", 0.45)
    assert found.answer in OFFERS[:2] and found.votes == 2
    assert found.similarity == pytest.approx(similarity(*OFFERS[:2]), abs=1e-3) and 0.45 < found.similarity < 1
    assert agreement(keyed(*OFFERS), "generate", 0.95).votes == 1
    assert agreement(keyed("billing", "delivery", "billing"), "classify", 0.45) == Agreement("billing", 2)
    assert agreement([], "chat", 0.45).votes == 0


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("42", "42.0", True),
        ("42", "43", False),
        ("It costs 1,000 euros.", "It costs 1000 euros.", True),
        ("It costs 1000 euros.", "It costs 1001 euros.", False),
        ("The kettle K holds 2 litres and costs 40 euros.", "The kettle K holds 2 litres and costs 45 euros.", False),
        ("The kettle holds 2 litres and it costs 40 euros.", "The kettle holds 2 litres and it costs a lot.", True),
        ('{"name": "find", "arguments": {"what": "kelp"}}', '{"name": "find", "arguments": {"what": "kelt"}}', False),
        ('{"name": "find", "arguments": {"what": "kelp"}}', "I would find kelp.", False),
    ],
)
def test_numbers_and_calls_agree_exactly(one: str, other: str, agree: bool) -> None:
    assert (agreement(keyed(one, other), "chat", 0.45).votes == 2) == agree


def test_free_text_is_sampled_until_enough_agree_and_its_row_says_how_much() -> None:
    said = {
        "good": OFFERS[:2],
        "bad": (*OFFERS[1:], "Ask again later."),
        "worst": (OFFERS[0], OFFERS[2], "Forty-two, as ever."),
    }
    spoken = Spoken(lambda text, seed: said[text][seed])
    made = Maker(task("generate", samples=3, agree=2), spoken.teacher()).answers(
        3, [Text(name, "in.txt", n) for n, name in enumerate(said, 1)]
    )
    assert [answer for _, answer in pairs_of(made)] == [OFFERS[0]] and codes_of(made) == {"low_agreement": 2}
    told = made.rows[0]["provenance"]
    assert (told["samples"], told["agree"]) == (2, 2) and told["similarity"] > 0.45
    assert made.rejected[1]["evidence"].startswith("1 of 3 answers agree, 2 must: 1 x")


# ---- seeds with tools -----------------------------------------------------------------------

FIND = {"type": "function", "function": {"name": "find", "description": "Find a thing.", "parameters": {
    "type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}}}  # fmt: skip
LOSE = {"type": "function", "function": {"name": "lose", "description": "Lose a thing."}}


def tool_seed(text: str, name: str, declared: dict[str, Any], line: int) -> Example:
    answer = Message("assistant", "", (ToolCall(name, json.dumps({"what": text})),))
    return Example(
        (Message("user", f"{name} the {text}"), answer), (1, 2), "seeds.jsonl", line, tools=json.dumps([declared])
    )


def test_seeds_with_tools_give_rows_with_tools_whose_calls_are_checked() -> None:
    seeds = (tool_seed("kelp", "find", FIND, 1), tool_seed("jade", "find", FIND, 2), tool_seed("iris", "lose", LOSE, 3))
    held_out = (replace(tool_seed("lotus", "find", FIND, 1), source="eval.jsonl"),)
    seen: list[Prompt] = []

    def say(text: str, seed: int) -> str:
        if "JSON array" not in text:
            word = text.split()[-1]
            return json.dumps({"name": "find", "parameters": {"what": word}})
        name = "find" if "Find a thing" in text else "lose"
        words = [f"{w}{zlib.crc32(text.encode()) % 97}" for w in ("amber", "birch", "cedar")]
        calls = [{"name": name, "arguments": {"what": words[0]}}, {"name": "sell", "arguments": {}},
                 {"name": name, "arguments": {"where": "here"}}]  # fmt: skip
        items = [{"input": f"{name} the {w}", "answer": c} for w, c in zip(words, calls, strict=True)]
        return json.dumps([*items, *([{"input": "find the lotus", "answer": "no"}] if name == "find" else [])])

    spoken = Spoken(say)
    sampling = spoken.sampling

    def watched(seed: int) -> Any:
        def generate(prompts: list[Prompt], progress: Progress) -> list[Completion]:
            seen.extend(prompts)
            return sampling(seed)(prompts, progress)

        return generate

    maker = Maker(task("chat", train=seeds, eval=held_out), spoken.teacher(sampling=watched))
    made = maker.pairs(4, "seeds")
    assert {r["tools"][0]["function"]["name"] for r in made.rows} == {"find", "lose"}
    for row in made.rows:
        called = row["messages"][-1]["tool_calls"][0]["function"]
        assert called["name"] == row["tools"][0]["function"]["name"] and row["messages"][-1]["content"] == ""
        assert row["provenance"]["template"] == "pairs-1-tools-1"
        seeds_shown = [s for s in seeds if s.id in row["provenance"]["seed_ids"]]
        assert {json.loads(s.tools)[0]["function"]["name"] for s in seeds_shown} == {called["name"]}
    codes = codes_of(made)
    assert codes["undeclared_tool"] and codes["bad_tool_arguments"] and codes["leak_into_eval"]
    # Inputs: the tools of most seeds go with the request, and the answer is read as a call.
    seen.clear()
    (row,) = (
        Maker(task("chat", train=seeds), spoken.teacher(sampling=watched)).answers(1, [Text("find fern", "i", 1)]).rows
    )
    assert row["tools"] == [FIND] and json.loads(row["messages"][-1]["tool_calls"][0]["function"]["arguments"]) == {
        "what": "fern"
    }
    assert seen[0][0] == Message("tools", json.dumps([FIND])) and [m.role for m in seen[0]].count("tool") == 2


# ---- distilabel's output --------------------------------------------------------------------


def distilabel_row(text: str, generation: Any, **more: Any) -> dict[str, Any]:
    """A row as distilabel 1.5.3 wrote it with TextGeneration on 2026-11-24."""
    statistics = {"statistics_text_generation_0": {"input_tokens": 20, "output_tokens": 9}}
    metadata = [statistics] * len(generation) if isinstance(generation, list) else statistics
    return {
        "instruction": text, "system_prompt": "Answer briefly.", "generation": generation,
        "distilabel_metadata": metadata, "model_name": "m-1", **more,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_distilabels_output_is_imported_with_its_provenance(suffix: str, tmp_path: Path) -> None:
    rows = [
        distilabel_row("Fee (billing)", ["billing", "Billing", "delivery"]),
        distilabel_row("Hm", ["billing", "delivery", "n/a"]),
        distilabel_row("Box 2 never came to town 2 (delivery)", ["delivery"] * 3),
    ]
    file = tmp_path / f"out.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), file)
    maker = Maker(task(), None)
    made = maker.imported(read_distilabel([str(file)], maker.shape))
    assert pairs_of(made) == [("Fee (billing)", "billing")]
    assert codes_of(made) == {"low_agreement": 1, "exact_duplicate": 1}
    told = made.rows[0]["provenance"]
    assert told["teacher"] == "m-1" and told["samples"] == 3 and told["agree"] == 2 and told["cost_usd"] is None
    assert told["tokens"] == {"input_tokens": 20, "output_tokens": 9} and told["file"].endswith(f"out.{suffix} line 1")


def test_generations_on_rows_of_their_own_are_samples_of_one_input(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text(
        "".join(json.dumps(distilabel_row("Fee", said)) + "\n" for said in ("billing", "delivery", "billing"))
    )
    maker = Maker(task(), None)
    made = maker.imported(read_distilabel([str(file)], maker.shape))
    assert pairs_of(made) == [("Fee", "billing")] and made.rows[0]["provenance"]["samples"] == 3
    file.write_text('{"score": 1}\n')
    with pytest.raises(DataError, match=r"out.jsonl:1: no distilabel row: it needs instruction"):
        read_distilabel([str(file)], maker.shape)


# ---- the command, against real servers ------------------------------------------------------


RUN_FILE = """\
name: trial
task: {{kind: classify, bar: 0.8, instruction: "Route the message to billing or delivery."}}
data: {{train: seeds.jsonl, eval: eval.jsonl}}
budget_usd: {budget}
synth:
  teacher:
    {{name: big, base_url: "{url}", model: scripted, api_key_env: "{key}", num_parallel: 2, timeout_s: 20,
     usd_per_million_input_tokens: 2, usd_per_million_output_tokens: 10}}
"""
Serve = Callable[..., ScriptedServer]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with seeds and held-out rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, examples in (("seeds", SEEDS), ("eval", HELD_OUT)):
        rows = [{"prompt": e.user_text, "completion": e.completion} for e in examples]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def serve(here: Path) -> Iterator[Serve]:
    """Start a server by a script and write run.yaml for it."""
    servers = []

    def start(script: Any = intents, budget: float = 1.0, key: str = "") -> ScriptedServer:
        servers.append(ScriptedServer(script))
        Path("run.yaml").write_text(RUN_FILE.format(url=servers[-1].url, budget=budget, key=key))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def told(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capfd.readouterr().out)


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_synthesis_adds_up_and_its_rows_can_be_trained_on(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve()
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out", "--json"]) == 0
    result = told(capfd)
    assert result["kept"] + result["rejected"] == result["generated"] and result["kept"] >= 60
    assert sum(result["rejected_by_code"].values()) == result["rejected"]
    assert (
        len(lines("out/synthetic.jsonl")) == result["kept"] and len(lines("out/rejected.jsonl")) == result["rejected"]
    )
    assert len(lines("out/answers.jsonl")) == len(server.requests)
    assert result["spent_usd"] == pytest.approx(result["cost_usd"])
    assert lines("out/ledger.jsonl")[0]["actual"]["usd"] == pytest.approx(result["spent_usd"])
    loaded = load(["out/synthetic.jsonl"], FieldsConfig(), "", Path())
    assert len(loaded.examples) == result["kept"] and not loaded.dropped
    assert all(e.completion in ("billing", "delivery") and f"({e.completion})" in e.user_text for e in loaded.examples)
    sent = [r for r in server.requests if is_answer(r)]
    assert {r["temperature"] for r in sent} == {0.7} and {r["seed"] for r in sent} >= {0, 1}
    # Once more: nothing is asked, the same bytes.
    num_asked, before = len(server.requests), Path("out/synthetic.jsonl").read_bytes()
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out"]) == 0
    assert len(server.requests) == num_asked and Path("out/synthetic.jsonl").read_bytes() == before
    shown = capfd.readouterr().out
    assert "rows generated" in shown and "refused because" in shown and "data.train: the files it has" in shown


class Held:
    """A script that answers so many requests and holds the others until it is let go; `reached` once it holds one."""

    def __init__(self, num_answered: int) -> None:
        self.num_answered = num_answered
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __call__(self, number: int, body: dict[str, Any]) -> Any:
        if number >= self.num_answered:
            self.reached.set()
            self.let_go.wait(60)
        return intents(number, body)


def start_synth() -> subprocess.Popen[str]:
    # A background job of a shell inherits an ignored SIGINT; the command under test must not.
    return subprocess.Popen(
        [sys.executable, "-m", "shoestring", "synth", "run.yaml", "--num", "60", "--out", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_killed_in_the_middle_it_goes_on_and_pays_for_nothing_twice(serve: Serve, here: Path) -> None:
    held = Held(25)
    server = serve(held)
    process = start_synth()
    assert held.reached.wait(60)
    process.kill()
    process.communicate()
    held.let_go.set()
    assert len(lines("out/answers.jsonl")) in (24, 25)  # one of two workers may have been about to write its answer
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out"]) == 0
    answers = lines("out/answers.jsonl")
    assert len({a["request"] for a in answers}) == len(answers)
    assert 0 < len(server.requests) - len(answers) <= 2  # at most what was in flight was asked for again
    whole = lines("out/synthetic.jsonl")
    assert run(["synth", "run.yaml", "--num", "60", "--out", "other"]) == 0
    for row in (*whole, *(others := lines("other/synthetic.jsonl"))):
        del row["provenance"]["made_at"]
    assert whole == others
    entries = lines("out/ledger.jsonl")
    assert sum(e["actual"]["usd"] for e in entries) == pytest.approx(sum(a["answer"]["cost_usd"] for a in answers))


def test_an_interrupt_is_exit_code_5_and_keeps_what_was_paid(serve: Serve, here: Path) -> None:
    held = Held(25)
    serve(held)
    process = start_synth()
    assert held.reached.wait(60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    held.let_go.set()
    assert process.returncode == 5 and "run the same command again" in said
    assert len(lines("out/answers.jsonl")) in (24, 25)


def test_a_budget_of_a_hundredth_of_a_cent_asks_nothing(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve(budget=0.0001)
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out", "--json"]) == 4
    assert told(capfd)["error"]["type"] == "BudgetStopped"
    assert not server.requests and not Path("out/answers.jsonl").exists()


def test_a_budget_in_the_middle_stops_with_rows_and_a_larger_one_goes_on(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(budget=0.05)
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out"]) == 4
    spent = sum(a["answer"]["cost_usd"] for a in lines("out/answers.jsonl"))
    receipt = json.loads(Path("out/receipt.json").read_text())
    assert 0.02 < spent <= 0.05 and receipt["kept"] == len(lines("out/synthetic.jsonl")) > 0
    assert "raise budget_usd" in receipt["stopped_by"] and "rows so far" in capfd.readouterr().err
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("budget_usd: 0.05", "budget_usd: 1"))
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out"]) == 0
    assert len(lines("out/answers.jsonl")) == len(server.requests)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {}, b'{"error": "no"}'), ["HTTP 401", "check the key in the environment variable TEACHER_KEY"]),
        ((404, {}, b"The model `scripted` does not exist"), ["HTTP 404", "model ('scripted') in the run file"]),
        ((429, {"Retry-After": "900"}, b"slow down"), ["asks to wait 900 s", "120 s", "lower num_parallel (now 2)"]),
        ((200, {}, b"<html>login</html>"), ["is no chat completion: '<html>login", "check that base_url"]),
        ((200, {}, b'{"choices": []}'), ["is no chat completion"]),
    ],
)
def test_an_endpoint_that_refuses_is_told_in_words(
    serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, reply: Any, words: list[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-wrong")
    serve(lambda number, body: reply, key="TEACHER_KEY")
    assert run(["synth", "run.yaml", "--num", "9", "--out", "out"]) == 1
    said = capfd.readouterr().err
    assert all(word in said for word in words) and "sk-wrong" not in said and "Traceback" not in said


def test_a_rate_limit_is_waited_for(serve: Serve) -> None:
    server = serve(lambda n, body: (429, {"Retry-After": "0.2"}, b"slow") if n % 5 == 3 else intents(n, body))
    assert run(["synth", "run.yaml", "--num", "9", "--out", "out"]) == 0
    assert len(lines("out/answers.jsonl")) < len(server.requests)


def test_nobody_there(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.decide.client.MAX_ATTEMPTS", 2)
    Path("run.yaml").write_text(RUN_FILE.format(url="http://127.0.0.1:9/v1", budget=1, key=""))
    assert run(["synth", "run.yaml", "--num", "9", "--out", "out"]) == 1
    said = capfd.readouterr().err
    assert "connection failed" in said and "is the server running? check host and port of base_url" in said


def test_not_one_row_is_a_failure_and_says_why(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    serve(lambda number, body: chat("I'm sorry, but I can't help with that request."))
    assert run(["synth", "run.yaml", "--num", "4", "--out", "out"]) == 1
    assert "none of 10 rows could be kept (10 refusal)" in capfd.readouterr().err


def test_a_dry_run_needs_no_key_asks_nothing_and_writes_nothing(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(key="NOT_SET")
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out", "--dry-run", "--json"]) == 0
    predicted = told(capfd)
    assert not server.requests and not Path("out").exists()
    cost = predicted["cost_usd"]
    assert 0 < cost["low"] < cost["value"] < cost["high"] and predicted["first_prompt"][1]["content"].startswith(
        "The task"
    )
    assert run(["synth", "run.yaml", "--out", "out"]) == 2
    assert "NOT_SET is not set" in capfd.readouterr().err
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("NOT_SET", ""))
    assert run(["synth", "run.yaml", "--num", "60", "--out", "out", "--json"]) == 0
    assert cost["low"] / 2 < told(capfd)["spent_usd"] < 3 * cost["value"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "nothing"], "--from nothing: choose one of seeds, documents, task, inputs, distilabel"),
        (["--engine", "ray"], "--engine ray: choose one of builtin, distilabel"),
        (["--engine", "distilabel"], "synth.distilabel_python '.' is no program"),
        (["--from", "inputs"], "--from inputs needs files"),
        (["seeds.jsonl"], "--from seeds takes no files"),
        (["none.txt", "--from", "inputs"], "none.txt: no such file"),
        (["--num", "0"], "--num 0: ask for at least one row"),
        (["--endpoint", "small"], "--endpoint small: the run file has big under synth.teacher and decide.endpoints"),
        (["--out", "."], "--out . holds other files"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    serve: Serve, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    server = serve()
    assert run(["synth", "run.yaml", "--out", "out", *arguments]) == 2
    assert words in capfd.readouterr().err and not server.requests


def test_without_seeds_a_task_needs_its_instruction_and_its_labels(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    serve()
    text = Path("run.yaml").read_text().replace("seeds.jsonl", "later.jsonl")
    Path("run.yaml").write_text(text)
    assert run(["synth", "run.yaml", "--out", "out", "--from", "task"]) == 2
    assert "list them under synth.labels" in capfd.readouterr().err
    Path("run.yaml").write_text(text + "  labels: [billing, delivery]\n")
    assert run(["synth", "run.yaml", "--out", "out", "--from", "task", "--num", "6", "--json"]) == 0
    assert told(capfd)["notes"][0] == "no seeds: later.jsonl is not there yet"
    assert run(["synth", "run.yaml", "--out", "other"]) == 2  # seeds are needed
    assert "later.jsonl" in capfd.readouterr().err


def test_held_out_rows_are_split_off_first_and_written_beside(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve()
    many = [
        {"prompt": f"{e.user_text} {n * 7} {'x' * n}", "completion": e.completion} for n in range(12) for e in SEEDS
    ]
    Path("seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace(", eval: eval.jsonl", ""))
    assert run(["synth", "run.yaml", "--out", "out", "--num", "20"]) == 0
    held_out = [row["messages"][0]["content"] for row in lines("out/eval.jsonl")]
    assert held_out and "data.eval: out/eval.jsonl" in capfd.readouterr().out
    seen = "\n".join(m["content"] for r in server.requests for m in r["messages"])
    assert not any(f"Input: {text}\n" in seen for text in held_out)


# ---- distilabel as an engine, behind its process --------------------------------------------

# Stands in for the Python of distilabel's environment: same files in and out, without distilabel.
FAKE = """\
#!{python}
import json, sys
_, _, _, requests, replies = sys.argv
asked = json.load(open(requests))
with open(replies, "w") as out:
    for number, row in enumerate(asked["requests"]):
        text = row["messages"][-1]["content"]
        said = None if "{missing}" and "{missing}" in text else text.rpartition("(")[2].rstrip(")")
        counts = {{"num_prompt_tokens": 100, "num_completion_tokens": 3}}
        out.write(json.dumps({{"key": row["key"], "text": said, **counts}}) + "\\n")
print("SomeError: the endpoint said no")
"""


def fake_distilabel(folder: Path, missing: str = "") -> Path:
    path = folder / f"python{missing}"
    path.write_text(FAKE.format(python=sys.executable, missing=missing))
    path.chmod(0o755)
    return path


def engine(python: Path) -> None:
    text = Path("run.yaml").read_text() + f'  distilabel_python: "{python}"\n'
    Path("run.yaml").write_text(text)
    Path("in.txt").write_text("Fee (billing)\nLate (delivery)\nFee again and again (billing)\n")


def test_distilabel_answers_behind_a_process_boundary(
    serve: Serve, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    engine(fake_distilabel(here))
    command = ["synth", "run.yaml", "in.txt", "--from", "inputs", "--out", "out", "--engine", "distilabel", "--json"]
    assert run(command) == 0
    assert told(capfd)["kept"] == 3 and not server.requests
    answers = lines("out/answers.jsonl")
    assert {a["engine"] for a in answers} == {"distilabel"} and len(answers) == 6
    assert answers[0]["answer"]["cost_usd"] == pytest.approx((100 * 2 + 3 * 10) / 1e6)
    # The keys are the client's: the builtin engine finds every answer.
    assert run([*command[:-3], "--json"]) == 0
    assert told(capfd)["kept"] == 3 and not server.requests


def test_what_distilabel_left_unanswered_is_an_error_that_quotes_it(
    serve: Serve, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    serve()
    engine(fake_distilabel(here, missing="Late"))
    assert run(["synth", "run.yaml", "in.txt", "--from", "inputs", "--out", "out", "--engine", "distilabel"]) == 1
    said = capfd.readouterr().err
    assert "2 of 3 requests were answered (exit status 0); it said: SomeError: the endpoint said no" in said
    assert len(lines("out/answers.jsonl")) == 2


if os.environ.get("SHOESTRING_DISTILABEL_PYTHON"):

    def test_real_distilabel_gives_the_rows_of_the_builtin_engine(serve: Serve) -> None:
        serve()
        engine(Path(os.environ["SHOESTRING_DISTILABEL_PYTHON"]))
        command = ["synth", "run.yaml", "--num", "10", "--out"]
        assert run([*command, "theirs", "--engine", "distilabel"]) == 0
        assert run([*command, "ours"]) == 0
        theirs, ours = lines("theirs/synthetic.jsonl"), lines("ours/synthetic.jsonl")
        assert [r["messages"] for r in theirs] == [r["messages"] for r in ours]


# ---- a real model as the teacher ------------------------------------------------------------


def test_the_embedded_model_answers_inputs_over_http(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.embedded_server import EmbeddedServer

    server = EmbeddedServer(key="sk-teacher")
    os.environ["TEACHER_KEY"] = "sk-teacher"
    try:
        text = RUN_FILE.format(url=server.url, budget=1, key="TEACHER_KEY").replace("classify", "generate")
        text = text.replace("model: scripted", "model: shoestring-1m").replace("timeout_s: 20", "timeout_s: 300")
        Path("run.yaml").write_text(text + "  max_new_tokens: 16\n")
        Path("in.txt").write_text("".join(f"Order {n}: the kettle of box {n * n} is late.\n" for n in range(1, 4)))
        assert run(["synth", "run.yaml", "in.txt", "--from", "inputs", "--out", "out", "--json"]) in (0, 1)
        capfd.readouterr()
        receipt = json.loads(Path("out/receipt.json").read_text())
        assert receipt["kept"] + receipt["rejected"] == receipt["generated"] == 3
        assert server.num_answered == len(lines("out/answers.jsonl")) and 0 < server.num_answered <= 9
        answered = {a["answer"]["text"].strip() for a in lines("out/answers.jsonl")}
        assert all(row["messages"][-1]["content"] in answered for row in lines("out/synthetic.jsonl"))
        assert receipt["spent_usd"] > 0 and math.isclose(receipt["spent_usd"], receipt["cost_usd"])
        num_answered = server.num_answered
        assert run(["synth", "run.yaml", "in.txt", "--from", "inputs", "--out", "out"]) in (0, 1)
        assert server.num_answered == num_answered
    finally:
        del os.environ["TEACHER_KEY"]
        server.close()
