"""The data section: rows side by side with their differences marked, everything escaped, secrets masked."""

import csv
import json
import re

import pytest
from report_folder import HOSTILE
from test_report import Page

from shoestring.config import FieldsConfig
from shoestring.data.store import write_curated
from shoestring.files import write_json
from shoestring.records import Curated, DroppedRow, Example, Fault, Message
from shoestring.report.data import data_page
from shoestring.report.data_files import MAX_EXAMPLES, MAX_SUSPECTS, read_data
from shoestring.report.sides import marked
from shoestring.report.svg import bars, histogram


def row(prompt, answer, line, source="a.jsonl"):
    return Example((Message("user", prompt), Message("assistant", answer)), (1, 2), source, line)


def text_of(prompt, answer):
    return {"prompt": prompt, "completion": answer}


KEY = "AKIAZ5X2QW7RT3YU4NBV"
TRAIN = (
    row("Where is my card?", "card_arrival", 1),
    row("Rückerstattung für Café", "refund", 4),
    row(f"Use {KEY} please", "other", 9),
    *(row(f"Question number {i} about cards", ("card_arrival", "refund")[i % 2], 20 + i) for i in range(30)),
)
DROPPED = (
    DroppedRow(text_of("where is my  card", "card_arrival"), "a.jsonl", 2, "exact_duplicate", "equal to line 1", 1),
    DroppedRow(text_of("Send 5 now", "yes"), "a.jsonl", 5, "contradiction", "differing: 'yes' / 'no'", 6),
    DroppedRow(text_of("Send 5 now", "no"), "a.jsonl", 6, "contradiction", "differing: 'no' / 'yes'", 5),
    DroppedRow('{"prompt": "cut', "a.jsonl", 7, "invalid_json", "breaks off", None),
    DroppedRow(text_of("late", ""), "b.jsonl", 3, "near_duplicate", "like it (partner in a.jsonl)", 1),
    *(
        DroppedRow(text_of(f"empty {i}", ""), "a.jsonl", 50 + i, "empty_answer", "the answer is empty")
        for i in range(9)
    ),
)
FAULTS = (
    Fault("not_utf8", "a.jsonl", 4, "not UTF-8, read as Latin-1", "safe"),
    Fault("secret_api_key", "a.jsonl", 9, "API key: AKIA… (user)", "ask"),
    Fault("invalid_json", "a.jsonl", 7, "breaks off", "drop"),
    Fault("near_contradiction", "a.jsonl", 20, "line 21 asks the same", "ask"),
    Fault("near_contradiction", "a.jsonl", 21, "line 20 asks the same", "ask"),
)


@pytest.fixture
def folder(tmp_path):
    counts = {"rows_in": 48, "rows_expanded": 0, "rows_train": 33, "rows_dev": 0, "rows_eval": 1, "dropped": 14}
    held_out = (row("A held-out question", "refund", 80),)
    curated = Curated(TRAIN, (), held_out, DROPPED, FAULTS, counts, ("card_arrival", "other", "refund"), ("a note",))
    out = tmp_path / "out"
    write_curated(curated, out)
    lines = [b"{}"] * 10
    lines[3] = '{"prompt": "Rückerstattung für Café", "completion": "refund"}'.encode("latin-1")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    return out


def write_reviews(folder, rows):
    heads = ["id", "source", "line", "code", "score", "evidence", "prompt", "answer", "decision", "corrected_answer"]
    with (folder / "review.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([heads, *rows])


def test_rows_stand_beside_their_partners(folder, tmp_path):
    files = read_data(folder, tmp_path, FieldsConfig(), None)
    (duplicate,) = files.dropped["exact_duplicate"]
    assert (duplicate.row.prompt, duplicate.partner.prompt) == ("where is my  card", "Where is my card?")
    first, second = files.dropped["contradiction"]  # a partner that was dropped itself
    assert (first.row.answer, first.partner.answer) == ("yes", "no")
    assert (second.row.answer, second.partner.answer) == ("no", "yes")
    (near,) = files.dropped["near_duplicate"]  # a partner in another file
    assert near.partner.prompt == "Where is my card?"
    assert files.dropped["invalid_json"][0].row.answer is None
    assert len(files.dropped["empty_answer"]) == MAX_EXAMPLES
    (repaired,) = files.faults["not_utf8"]
    assert "R\ufffdckerstattung" in repaired.row.prompt and repaired.partner.prompt == "Rückerstattung für Café"
    (flagged,) = files.faults["near_contradiction"]
    assert (flagged.row.prompt, flagged.partner.prompt) == (
        "Question number 0 about cards", "Question number 1 about cards"
    )  # fmt: skip
    assert "invalid_json" not in files.faults, "what was dropped is told once"
    assert files.train.labels == {"card_arrival": 16, "refund": 16, "other": 1}
    assert files.left_out.num_rows == 4, "rows without answer or JSON could not have been trained on"


def test_the_answer_of_a_conversation_that_was_dropped_stands_beside_the_one_it_repeats(tmp_path):
    def chat(*texts, line):
        roles = ("user", "assistant") * len(texts)
        messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
        return Example(messages, (len(messages) - 1, len(messages)), "a.jsonl", line)

    said = ("Which bus?", "The 7.", "And back?", "The 9.")
    train = (chat(*said[:2], line=1), chat(*said, line=1))
    source = {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]}
    dropped = tuple(
        DroppedRow(source, "a.jsonl", 2, "exact_duplicate", f"equal to line 1: {e.user_text[:7]}…", 1, e.id)
        for e in train
    )
    write_curated(Curated(train, (), (), dropped, (), {"rows_in": 2, "rows_train": 2, "dropped": 2}, None), tmp_path)
    first, second = read_data(tmp_path, None, FieldsConfig(), None).dropped["exact_duplicate"]
    assert first.row == first.partner and first.row.answer == "The 7."
    assert second.row == second.partner and second.row.answer == "The 9." and "[assistant] The 7." in second.row.prompt
    html = data_page(tmp_path)
    assert '<p class="why">equal to line 1</p>' in html, "the prompt stands below and is not said twice"


def test_without_the_source_only_the_repaired_form_is_shown(folder, tmp_path):
    (tmp_path / "a.jsonl").unlink()
    (repaired,) = read_data(folder, tmp_path, FieldsConfig(), None).faults["not_utf8"]
    assert repaired.partner is None and repaired.row.prompt == "Rückerstattung für Café"
    assert read_data(folder, None, FieldsConfig(), None).faults["not_utf8"][0].partner is None


def test_the_page_tells_it_all(folder, tmp_path):
    worst = ["0123", "a.jsonl", 1, "label_error", 0.93, "likely refund", "Where?", "card_arrival", "", ""]
    fixed = ["0124", "a.jsonl", 4, "label_error", 0.71, "x", "Café", "other", "fix", "refund"]
    write_reviews(folder, [worst, fixed])
    receipt = json.loads((folder / "receipt.json").read_text())
    one = {"num_rows": 9, "num_tokens": 90, "nearest_similarity": 0.5, "vocabulary_frac": 0.8}
    write_json(folder / "receipt.json", {**receipt, "choice": {"budget_tokens": 90, "coverage": one, "random": one}})
    html = data_page(folder, tmp_path)
    text = Page(html).text
    for expected in ("48 rows in", "34 kept, 14 dropped", "exact duplicate", "a.jsonl:2, dropped", "line 1", "a note",
                     "b.jsonl:3, dropped", " a.jsonl:1 ",
                     "near duplicate", "Repaired", "as it came", "Flagged", "secret api key", "3 of 9 shown",
                     "1. label error", "fix: refund", "2 rows in review.csv", "1 decided",
                     "3 labels, 1 to 17 kept rows", "a.jsonl:1, score 0.93", "All of them",
                     f"shoestring curate FILES --out {folder} --restore contradiction",
                     "A decision does not bring it back: there is nothing to learn from it", "16 + 1",
                     "90 tokens asked for", "answer, characters"):  # fmt: skip
        assert expected in text, expected
    assert KEY not in html and "&lt;API_KEY&gt;" in html
    assert "<mark>yes</mark>" in html and "<mark>no</mark>" in html


def test_hostile_rows_are_shown_as_text(folder, tmp_path):
    curated = Curated(
        (row(HOSTILE, HOSTILE, 1),), (), (), (
            DroppedRow(text_of(HOSTILE, HOSTILE + "x"), HOSTILE, 2, HOSTILE, HOSTILE, 1),
            DroppedRow({"messages": HOSTILE, "prompt": {"a": [1]}}, "a", 3, "missing_field", "", None),
            DroppedRow([1, None], "a", 3, "missing_field", "", None),
        ), (Fault(HOSTILE, HOSTILE, 1, HOSTILE, "safe"), Fault("x", "", 0, "", "ask")),
        {"rows_in": 4, "rows_train": 1, "dropped": 3}, (HOSTILE,), (HOSTILE,),
    )  # fmt: skip
    write_curated(curated, folder)
    write_reviews(folder, [[HOSTILE.replace("\x00", "").replace("\ud800", "")] * 10])
    html = data_page(folder, tmp_path)
    page = Page(html)
    assert not set(page.tags) & {"script", "img", "iframe", "object", "link"} and "onerror=alert(1)>" not in html
    assert '<script>alert("x")</script>' in page.text
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", html)


def test_damaged_and_missing_files_are_said(folder, tmp_path):
    with (folder / "dropped.jsonl").open("a") as file:
        file.write('{"row": {"prom\n[1]\n')
    (folder / "review.csv").write_bytes(b"\xff\xfe\x00,\n\x00\n")
    assert "2 damaged lines" in Page(data_page(folder, tmp_path)).text
    (folder / "receipt.json").write_text("{")
    assert "receipt.json: cannot be read" in Page(data_page(folder, tmp_path)).text
    assert "receipt.json: cannot be read" in Page(data_page(tmp_path / "none")).text


def test_many_rows_stay_few_in_the_page(tmp_path):
    train = tuple(row(f"Question {i}?", f"answer {i}", i + 1) for i in range(3000))
    dropped = tuple(
        DroppedRow(text_of(f"question {i}", f"answer {i}"), "a.jsonl", 4000 + i, "exact_duplicate", "", i + 1)
        for i in range(2000)
    )
    faults = tuple(Fault("refusal", "a.jsonl", i + 1, "refuses") for i in range(500))
    counts = {"rows_in": 5000, "rows_train": 3000, "rows_dev": 0, "rows_eval": 0, "dropped": 2000}
    write_curated(Curated(train, (), (), dropped, faults, counts, None), tmp_path)
    write_reviews(tmp_path, [[i, "a.jsonl", i, "label_error", 0.5, "", "q" * 9000, "a", "", ""] for i in range(700)])
    html = data_page(tmp_path)
    assert len(html) < 60_000
    assert html.count("label error") == MAX_SUSPECTS and "of 700" in html


def test_marked_by_hand():
    assert marked("pay 5 now", "pay 7 now") == ("pay <mark>5</mark> now", "pay <mark>7</mark> now")
    assert marked("same", "same") == ("same", "same")
    assert marked("a<b", "a b") == ("a<mark>&lt;</mark>b", "a<mark>␣</mark>b")
    assert marked("a\nb", "ab")[0] == "<mark>a↵\nb</mark>"
    left, right = marked("x " * 900 + "old", "x " * 900 + "new")
    assert left.startswith("… ") and left.endswith("<mark>old</mark>") and right.endswith("<mark>new</mark>")
    assert len(left) < 500


def test_charts_by_hand():
    chart = histogram("length", [[0, 0, 1], [1]], ("s0", "s3"))
    # two bins of one character each, two rows high: 0 twice; 1 once a side
    heights = re.findall(r'x="([\d.]+)%" y="([\d.]+)" width="[\d.]+%" height="([\d.]+)" class="share (s\d)"', chart)
    assert heights == [("0.00", "34.0", "96.0", "s0"), ("50.00", "82.0", "48.0", "s0"), ("50.00", "34.0", "48.0", "s3")]
    assert "no rows" in histogram("length", [[], []], ("s0", "s3"))
    chart = bars("rows", [("a", [(3, "s0"), (1, "s2")], "3 + 1"), ("b<", [(0, "s0"), (0, "s2")], "0")])
    assert re.findall(r'width="([\d.]+%)" height="12"', chart) == ["34.50%", "11.50%"] and "b&lt;" in chart
    assert bars("rows", []).startswith("<svg")
