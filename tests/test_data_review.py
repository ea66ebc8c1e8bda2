"""review.csv: what goes out comes back, whatever the spreadsheet did in between; errors name the line."""

import csv
import io
from pathlib import Path

import pytest

from shoestring.data.review import COLUMNS, Decision, Mark, ReviewRow, decide, read_review, write_review
from shoestring.errors import DataError


def row(id: str, score: float = 0.5, **more: str) -> ReviewRow:
    texts = {"evidence": "why", "prompt": "p", "answer": "a", **more}
    return ReviewRow(id=id, source="data.jsonl", line=3, code="label_error", score=score, **texts)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_out_ranked_and_decisions_back(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    rows = [
        row("aa", 0.2, decision="keep"),
        row("bb", 0.9, decision="fix", corrected_answer='{"a": "x, y"}\nsecond line'),
        row("cc", 0.5, decision="drop"),
        row("dd", 0.1),
    ]
    write_review(path, rows)
    table = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
    assert tuple(table[0]) == COLUMNS
    assert [r["id"] for r in table] == ["bb", "cc", "aa", "dd"]
    assert read_review(path, {"aa", "bb", "cc", "dd"}) == {
        Mark("bb", "data.jsonl", 3): Decision("fix", '{"a": "x, y"}\nsecond line', 2),
        Mark("cc", "data.jsonl", 3): Decision("drop", None, 4),
        Mark("aa", "data.jsonl", 3): Decision("keep", None, 5),
    }


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+49 30", "-5", "@SUM(A1)", "'=1", "''-2", " =HYPERLINK()", "\t=1", "007", "1e5", "'quoted'", "don't"],
)
def test_no_cell_begins_like_a_formula_and_every_cell_comes_back(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "review.csv"
    write_review(path, [row("1234567890123456", prompt=cell, evidence=cell, decision="fix", corrected_answer=cell)])
    for written in next(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""))).values():
        assert not written.lstrip(" \t\r\n").startswith(("=", "+", "-", "@"))
    assert read_review(path, {"1234567890123456"})[Mark("1234567890123456", "data.jsonl", 3)].answer == cell


def test_columns_of_a_person_stay_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    path.write_text(
        "id,source,line,decision,Who,note\naa,data.jsonl,3,keep,Ann,=2 done\nbb,,,,Bob,\ncc,data.jsonl,9,,Cy,x\n"
    )
    rows = [row("aa", 0.2, decision="keep"), row("bb", 0.9), row("cc", 0.5)]
    for _ in range(2):
        write_review(path, rows)
        table = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
        assert [(r["id"], r["who"], r["note"]) for r in table] == [
            ("bb", "Bob", ""), ("cc", "", ""), ("aa", "Ann", "'=2 done")
        ]  # fmt: skip
    assert read_review(path) == {Mark("aa", "data.jsonl", 3): Decision("keep", None, 4)}


TABLE = "id,decision,corrected_answer,mine\naa,Drop,,x\nbb,fix,né,\n"


@pytest.mark.parametrize(
    "data",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),
        TABLE.replace(",", "\t").encode("utf-16"),
        b"sep=;\r\n" + TABLE.replace(",", ";").encode(),
        TABLE.encode() + b",,,\n\n",
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, data: bytes) -> None:
    found = read_review(write(tmp_path / "r.csv", data))
    assert {k.id: (d.action, d.answer) for k, d in found.items()} == {"aa": ("drop", None), "bb": ("fix", "né")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,decision\naa,keep\nzz,keep\n", "r.csv:3: no row with id 'zz'"),
        ("id,decision\naa,maybe\n", "r.csv:2: decision 'maybe' is none of keep, drop, fix"),
        ("id,decision,corrected_answer\naa,fix,\n", "r.csv:2: fix needs a corrected_answer"),
        ("id,decision,corrected_answer\naa,,new\n", "r.csv:2: there is a corrected_answer, but no decision"),
        ("id,decision,corrected_answer\naa,keep,new\n", "r.csv:2: keep takes no corrected_answer"),
        ('id,prompt,decision\naa,"two\nlines",keep\naa,p,drop\n', "r.csv:4: drop for id aa, but line 2 says keep"),
        (
            "id,source,line,decision\naa,f,3,keep\naa,f,4,drop\naa,f,3,drop\n",
            "r.csv:4: drop for id aa, but line 2 says",
        ),
        ("id,source,line,decision\naa,f,three,keep\n", "r.csv:2: line 'three' is no line number"),
        ('id,decision\naa,keep\nbb,"drop\n', "r.csv:3: not readable as CSV"),
        ("id,decision\naa,keep,,what\n", "r.csv:2: 4 cells, the header has 2"),
        ("a,b\n1,2\n", "r.csv:1: no header with the columns id and decision"),
        ("", "r.csv:1: no header"),
        ("id,deci\rsion\naa,keep\n", "r.csv:1: no header"),
        (b"id,decision\naa,keep\n\xe9,keep\n", "r.csv:3: not utf-8"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as error:
        read_review(write(tmp_path / "r.csv", text), {"aa", "bb"})
    assert said in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_review(tmp_path / "none.csv")


def test_a_decision_is_written_into_its_own_line_and_no_other_cell_changes(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    text = "sep=;\nid;note;decision;source;line;corrected_answer\na;=mine;;x.jsonl;3;\nb;'-1;keep;x.jsonl;4;\n"
    path.write_bytes(text.encode("utf-16"))
    assert decide(path, Mark("a", "x.jsonl", 3), "fix", "=1+1")
    lines = path.read_bytes().decode("utf-16").splitlines()
    assert lines == [*text.splitlines()[:2], "a;=mine;fix;x.jsonl;3;'=1+1", "b;'-1;keep;x.jsonl;4;"]
    assert read_review(path)[Mark("a", "x.jsonl", 3)].answer == "=1+1"
    assert decide(path, Mark("a", "x.jsonl", 3), "")  # taken back
    assert path.read_bytes().decode("utf-16") == text
    assert not decide(path, Mark("c", "x.jsonl", 9), "drop")
    with pytest.raises(DataError, match="fix takes the right answer"):
        decide(path, Mark("a", "x.jsonl", 3), "fix", " ")
    with pytest.raises(DataError, match="keep and drop take none"):
        decide(path, Mark("a", "x.jsonl", 3), "drop", "x")
