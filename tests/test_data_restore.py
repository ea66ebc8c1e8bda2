"""Quarantine: what may be restored, how it is named, and the decision that is left in review.csv."""

import csv
import json

import pytest

from shoestring.cli.main import run as cli
from shoestring.data.codes import CODES
from shoestring.data.folder import curate
from shoestring.data.restore import ADVICE, quarantined, restore, to_restore
from shoestring.data.review import Mark, ReviewRow, read_review, write_review
from shoestring.data.store import read_curated
from shoestring.demo.tickets import write_tickets
from shoestring.errors import BadInput, DataError


def dropped(line, code="exact_duplicate", source="data/a.jsonl", id=None):
    name = f"{line:016x}" if id is None else id
    row = {"prompt": f"question {line}", "completion": "yes"}
    return {"row": row, "source": source, "line": line, "code": code, "evidence": "why", "partner_line": 1, "id": name}


ROWS = [dropped(3), dropped(5), dropped(7, "near_duplicate"), dropped(3, "contradiction", "data/b.jsonl", "b3"),
        dropped(9, "invalid_json", id=""), dropped(11, "too_long"), dropped(12, "leak_into_eval")]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return out


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (["exact_duplicate"], [("data/a.jsonl", 3), ("data/a.jsonl", 5)]),
        (["7"], [("data/a.jsonl", 7)]),
        (["b.jsonl:3"], [("data/b.jsonl", 3)]),
        (["data/a.jsonl:3", "contradiction"], [("data/a.jsonl", 3), ("data/b.jsonl", 3)]),
        (["exact_duplicate", "a.jsonl:3", "5"], [("data/a.jsonl", 3), ("data/a.jsonl", 5)]),
    ],
)
def test_rows_are_named_by_code_or_place(folder, wanted, places):
    assert [(row.source, row.line) for row in to_restore(folder, wanted)] == places


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("nonsense", "neither a fault code nor LINE or SOURCE:LINE"),
        ("refusal", r"no such row among the dropped ones .* there are: contradiction \(1\), exact_duplicate \(2\)"),
        ("99", "no such row"),
        ("c.jsonl:3", "no such row"),
        ("l:3", "no such row"),
        ("3", "line 3 was dropped from more than one file; say which: data/a.jsonl:3, data/b.jsonl:3"),
        ("invalid_json", r"data/a.jsonl:9 \(invalid_json\) cannot be restored .* mend it in the source"),
        ("too_long", "raise train.seq_len"),
        ("12", "take it out of data.eval"),
    ],
)
def test_what_cannot_be_restored_says_why(folder, wanted, said):
    with pytest.raises(BadInput, match=said):
        to_restore(folder, [wanted])


def test_the_decision_is_written_once(folder, tmp_path):
    review = tmp_path / "review.csv"
    assert [row.line for row in restore(folder, ["exact_duplicate"], review)] == [3, 5]
    first = review.read_bytes()
    assert {mark.id: d.action for mark, d in read_review(review).items()} == {f"{3:016x}": "keep", f"{5:016x}": "keep"}
    restore(folder, ["exact_duplicate"], review)
    assert review.read_bytes() == first
    restore(folder, ["7"], review)
    assert len(read_review(review)) == 3 and review.read_bytes().startswith(first)


def test_other_lines_stay_as_the_spreadsheet_wrote_them(folder, tmp_path):
    review = tmp_path / "review.csv"
    text = "Note;id;decision;corrected_answer\r\n=1+1;aa;fix;a; b\r\n".replace("a; b", '"a; b"')
    review.write_bytes(text.encode("utf-16"))
    restore(folder, ["b.jsonl:3"], review)
    after = review.read_bytes().decode("utf-16")
    assert after.startswith(text)
    assert list(csv.reader(after[len(text) :].splitlines(), delimiter=";")) == [["", "b3", "keep", ""]]
    assert read_review(review)[Mark("aa")].answer == "a; b" and read_review(review)[Mark("b3")].action == "keep"


def test_a_decision_against_it_is_not_overruled(folder, tmp_path):
    review = tmp_path / "review.csv"
    write_review(review, [ReviewRow(f"{3:016x}", "data/a.jsonl", 3, "x", 0.5, "", "p", "a", "drop")])
    with pytest.raises(BadInput, match=r"review.csv:2: the decision on data/a.jsonl:3 is drop; write keep there"):
        restore(folder, ["exact_duplicate"], review)


def test_damaged_or_missing_quarantine_is_said(folder, tmp_path):
    with pytest.raises(DataError, match=r"no such file; give the folder of a finished curation"):
        list(quarantined(tmp_path))
    (folder / "dropped.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(DataError, match=r"dropped.jsonl:1: not as curation wrote it"):
        list(quarantined(folder))


def test_every_code_named_here_is_known():
    assert set(ADVICE) | {"restored"} <= set(CODES)


def test_a_restored_row_survives_the_rule_and_is_said(tmp_path):
    rows = [{"prompt": f"what is {i} and {i * 7}", "completion": ("yes", "no")[i % 2]} for i in range(60)]
    rows += [{"prompt": "Is it open?", "completion": "yes"}, {"prompt": "Is it open?", "completion": "no"}]
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = curate(source, out, kind="classify")
    assert before["dropped_by_code"] == {"contradiction": 2}
    (row,) = restore(out, ["61"], out / "review.csv")
    after = curate(source, out, kind="classify")
    assert after["dropped_by_code"].get("contradiction", 0) <= 1
    result = read_curated(out)
    assert row.id in {example.id for side in (result.train, result.dev, result.eval) for example in side}
    (fault,) = [fault for fault in result.faults if fault.code == "restored"]
    assert (fault.line, fault.repair) == (61, "safe") and "contradiction" in fault.evidence
    assert curate(source, out, kind="classify") == after, "the decision stays"


def test_of_equal_rows_the_named_one_alone_comes_back(tmp_path):
    rows = [{"prompt": f"what is {i} and {i * 7}", "completion": f"it is {i}"} for i in range(60)]
    source, out = tmp_path / "a.jsonl", tmp_path / "out"

    def kept_and_dropped(*more):
        source.write_text("".join(json.dumps(row) + "\n" for row in [*more, *rows, rows[0], rows[0]]))
        curate(source, out, kind="generate")
        result = read_curated(out)
        kept = [e.line for side in (result.train, result.dev, result.eval) for e in side if e.id == first.id]
        return sorted(kept), [(d.line, d.code) for d in result.dropped if d.id == first.id]

    curate_lines = [*rows, rows[0], rows[0]]
    source.write_text("".join(json.dumps(row) + "\n" for row in curate_lines))
    curate(source, out, kind="generate")
    first = next(quarantined(out))
    restore(out, ["62"], out / "review.csv")
    assert kept_and_dropped() == ([1, 62], [(61, "exact_duplicate")])
    review = out / "review.csv"
    text = review.read_text("utf-8-sig")
    review.write_text(text.replace(",keep,", ",drop,"))
    assert kept_and_dropped() == ([], [(1, "dropped_in_review"), (61, "dropped_in_review"), (62, "dropped_in_review")])
    review.write_text(text.replace(",keep,", ",fix,it is a correction"))
    kept_and_dropped()
    result = read_curated(out)
    corrected = [
        e.line for side in (result.train, result.dev, result.eval) for e in side if "correction" in e.completion
    ]
    assert sorted(corrected) == [1, 62] and [d.line for d in result.dropped] == [61]
    review.write_text(text)
    above = [{"prompt": f"new row {i} above", "completion": f"moves the lines by {i}"} for i in (1, 2)]
    assert kept_and_dropped(*above)[0] == [3, 63]


def test_curation_names_the_rows_it_sets_aside(tmp_path):
    rows = [{"prompt": f"what is {i} and {i * 7}", "completion": f"it is {i}"} for i in range(60)]
    lines = [json.dumps(row) for row in [*rows, rows[0]]] + ['{"prompt": "cut']
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines) + "\n")
    curate(source, tmp_path / "out", kind="generate")
    by_code = {row.code: row for row in quarantined(tmp_path / "out")}
    result = read_curated(tmp_path / "out")
    kept = {example.id for side in (result.train, result.dev, result.eval) for example in side}
    assert by_code["exact_duplicate"].id in kept, "the id of the row it equals"
    assert by_code["truncated_line"].id == ""


def test_from_the_command_line_a_dropped_row_comes_back(tmp_path, monkeypatch, capsys):
    """--restore, then the report beside the rows."""
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "in")
    assert cli(["curate", "in/train.jsonl", "--out", "out"]) == 0
    before = json.loads((tmp_path / "out/receipt.json").read_text())["counts"]
    assert "contradiction" in (tmp_path / "out/report.html").read_text()
    assert cli(["curate", "in/train.jsonl", "--out", "out", "--restore", "contradiction"]) == 0
    after = json.loads((tmp_path / "out/receipt.json").read_text())["counts"]
    assert after["dropped"] < before["dropped"] and after["rows_in"] == before["rows_in"]
    assert cli(["curate", "in/train.jsonl", "--out", "out", "--restore", "no_such_code"]) == 2
    assert "no_such_code" in capsys.readouterr().err
