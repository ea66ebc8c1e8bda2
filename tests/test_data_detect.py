"""`shoestring init`'s look at a file: format, fields, task kind and the evidence for it."""

import json

import pytest

from shoestring.config import METRICS_BY_KIND
from shoestring.data.detect import detect

PROMPTS = [f"text number {i}" for i in range(60)]


@pytest.mark.parametrize(
    ("kind", "answer", "evidence"),
    [
        ("classify", lambda i: ("refund", "card lost", "other")[i % 3], "only 3 different ones"),
        ("extract", lambda i: json.dumps({"n": i}), "60 of 60 answers are JSON objects"),
        ("sql", lambda i: f"SELECT a FROM t WHERE b = {i}", "SQL"),
        ("math", lambda i: f"{i} and 1 is {i + 1}\n#### {i + 1}", "#### number"),
        ("generate", lambda i: f"This is quite a long answer that has number {i}", "free text"),
        ("generate", lambda i: str(i), "60 different answers"),
    ],
)
def test_kind_from_answers(tmp_path, kind, answer, evidence):
    rows = [{"question": p, "answer": answer(i)} for i, p in enumerate(PROMPTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = detect(tmp_path / "a.jsonl")
    assert found.kind == kind and found.metric == METRICS_BY_KIND[kind][0]
    assert evidence in found.evidence
    assert found.format == "jsonl, pair (question, answer)" and found.num_rows_seen == 60
    assert found.fields == {"prompt": "question", "completion": "answer"}


def test_chat_from_turns_and_faults_counted(tmp_path):
    turns = [("user", "a {i}"), ("assistant", "b"), ("user", "c"), ("assistant", "d {i}")]
    rows = [{"messages": [{"role": r, "content": c.format(i=i)} for r, c in turns]} for i in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows) + "trailing")
    found = detect(tmp_path / "a.json")
    assert (found.kind, found.fields, found.num_faults) == ("chat", {"messages": "messages"}, 1)


def test_labels_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text("Text,Label\n" + "".join(f"t{i},{'xy'[i % 2]}\n" for i in range(40)))
    found = detect(tmp_path / "a.csv")
    assert found.kind == "classify" and found.labels == ("x", "y")
    assert found.fields == {"prompt": "Text", "completion": "Label"}
