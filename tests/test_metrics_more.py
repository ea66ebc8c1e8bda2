"""Metrics that need more than two texts: SQL by execution, schemas, tool calls, slots, mathematics, the user's own."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from shoestring.config import parse_run_file
from shoestring.errors import ConfigError, DataError, MissingDependency
from shoestring.evaluate import metrics_sql, more_metrics
from shoestring.evaluate.metrics_json import common_schema, score_calls
from shoestring.evaluate.metrics_math import math_equal
from shoestring.evaluate.metrics_slots import Slots, slots_of
from shoestring.evaluate.metrics_sql import Databases, QueryFault, ast_match, create_statements, has_order, run_query
from shoestring.evaluate.score import metric_value, score_arm
from shoestring.messages import Example, Message, ToolCall
from shoestring.records import Completion
from shoestring.task import TaskConfig


def example(prompt: str, answer: str, line: int = 1, tools: str = "", calls: tuple[ToolCall, ...] = ()) -> Example:
    messages = (Message("user", prompt), Message("assistant", answer, calls))
    return Example(messages, (1, 2), "rows.jsonl", line, tools=tools)


def scored(task: TaskConfig, examples: list[Example], outputs: list[str]):
    completions = [Completion(text, 1, 1, 0.1) for text in outputs]
    return score_arm(
        arm="x", kind="zero_shot", model="m", task=task, examples=examples, completions=completions, labels=None,
        wall_s=1,
    )  # fmt: skip


# SQL

SHOP = """
create table item (id integer primary key, name text, price real);
insert into item values (1, 'pen', 1.5), (2, 'cup', 4.0), (3, 'ink', 4.0), (4, 'pad', null);
create table sold (item_id integer, num integer);
insert into sold values (1, 2), (1, 3), (2, 1);
"""


@pytest.fixture
def shop(tmp_path: Path) -> TaskConfig:
    (tmp_path / "shop.sql").write_text(SHOP)
    return TaskConfig(kind="sql", bar=0.5, database="shop.sql").beside(tmp_path)


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("select name from item where price > 2", "SELECT i.name FROM item i WHERE i.price >= 4;", True),
        ("select name from item", "select name from item order by name desc", True),  # no order was asked for
        ("select name from item order by id", "select name from item order by name", False),
        ("select name from item order by id", "select name from item", True),  # SQLite happens to give it so
        ("select sum(num) from sold", "select 6", True),
        ("select sum(num) from sold", "select 6.0", True),
        ("select sum(num) from sold", "select '6'", False),
        ("select 0.1 + 0.2", "select 0.3", True),
        ("select item_id from sold", "select distinct item_id from sold", False),  # as often as they come
        ("select name, price from item", "select price, name from item", False),
        ("select price from item where id = 4", "select null", True),
        ("select name from item where id = 9", "select name from item where id = 8", True),
    ],
)
def test_queries_agree_by_what_they_return(shop: TaskConfig, expected: str, output: str, same: bool) -> None:
    assert Databases(shop).match(expected, output, "")[:2] == (same, None)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("delete from item", "not authorized"),
        ("drop table item", "not authorized"),
        ("insert into sold values (9, 9)", "not authorized"),
        ("attach database '/tmp/other.db' as other", "not authorized"),
        ("pragma writable_schema = 1", "not authorized"),
        ("select load_extension('x')", "not authorized"),
        ("select * from item; select 1", "one statement"),
        ("select nonsense", "no such column"),
        ("I do not know", "syntax error"),
        ("", "empty query"),
        ("with recursive n(i) as (select 1 union all select i + 1 from n) select i from n", "rows|passed"),
        ("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n", "passed"),
        ("select zeroblob(2000000000)", "not authorized"),
        ("select printf('%.*c', 2000000000, 'x')", "computed or wide"),
        ("select \"printf\" /* a */ ('%.' || 2000000000 || 'c', 'x')", "computed or wide"),
        ("select format('%2000000000d', 1)", "computed or wide"),
        ("select printf('%.2f', 2)", r"2\.00"),
    ],
)
def test_a_query_cannot_harm_or_hang(shop: TaskConfig, query: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_sql, "MAX_QUERY_S", 0.2)
    databases = Databases(shop)
    started = time.monotonic()
    try:
        said = str(run_query(databases.fixed[0], query))
    except QueryFault as fault:
        said = str(fault)
    assert re.search(why, said), said
    assert time.monotonic() - started < 5
    assert run_query(databases.fixed[0], "select count(*) from item") == [(4,)]


def test_a_database_file_is_copied_and_several_must_all_agree(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    for name, price in (("a.db", 1), ("b.db", 2)):
        with sqlite3.connect(tmp_path / "both" / name) as made:
            made.executescript(f"create table item (price); insert into item values ({price})")
        made.close()
    before = (tmp_path / "both/a.db").read_bytes()
    task = TaskConfig(kind="sql", bar=0.5, database="both").beside(tmp_path)
    databases = Databases(task)
    assert databases.match("select price from item", "select 1", "")[0] is False, "right by chance in one of them"
    assert databases.match("select price from item", "select max(price) from item", "")[0] is True
    assert (tmp_path / "both/a.db").read_bytes() == before
    assert Databases(task).fixed == databases.fixed, "not copied again for each part of the rows"
    assert [p.name for p in task.files()] == ["a.db", "b.db"]
    (tmp_path / "broken").write_bytes(b"\xff\xfe nothing")
    with pytest.raises(ConfigError, match="neither a SQLite file nor an SQL script"):
        Databases(TaskConfig(kind="sql", bar=0.5, database="broken").beside(tmp_path))


def test_tables_that_prompts_declare_are_filled_so_that_conditions_tell() -> None:
    prompt = "CREATE TABLE person (id INTEGER PRIMARY KEY, name VARCHAR(20), age INT);\nWho is 30 (or older)?"
    assert create_statements(prompt) == [prompt.split(";")[0]]
    databases = Databases(TaskConfig(kind="sql", bar=0.5, database="prompt"))
    expected = "select name from person where age >= 30 and name <> 'Ann'"
    for output, same in (
        ("select name from person where not age < 30 and name != 'Ann'", True),
        ("select name from person where age > 30 and name != 'Ann'", False),
        ("select name from person where age >= 30", False),
        ("select name from person where age >= 31 and name <> 'Ann'", False),
    ):
        assert databases.match(expected, output, prompt) == (same, None, True), output
    with pytest.raises(DataError, match="declares no table"):
        databases.match("select 1", "select 1", "hello")


def test_order_of_the_query_itself() -> None:
    assert has_order("select a from t order by a") and has_order("select a from t ORDER\nBY a limit 1")
    assert not has_order("select a from (select a from t order by a)")
    assert not has_order("select 'order by' from t -- order by a")


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("select a from t where x = 1 and y = 2", "SELECT A FROM T WHERE Y = 2 AND 1 = X", True),
        ("select a from t where x > 1", 'select "a" from t where 1 < x;', True),
        ("select a from t where x in (1, 2)", "select a from t where x in (2, 1)", True),
        ("select a from t where (x = 1 or y = 2) and z = 3", "select a from t where z = 3 and (y = 2 or x = 1)", True),
        ("select a from t where x = 'Ann'", "select a from t where x = 'ann'", False),
        ("select a, b from t", "select b, a from t", False),
        ("select a from t where x = 1 or y = 2", "select a from t where x = 1 and y = 2", False),
        ("select a from t", "select from where", False),
    ],
)
def test_syntax_trees(expected: str, output: str, same: bool) -> None:
    assert ast_match(expected, output)[0] is same


def test_an_arm_is_scored_by_execution_and_faulty_rows_are_named(shop: TaskConfig) -> None:
    rows = [example(f"q{i}", "select name from item where price > 2", i) for i in range(4)]
    arm = scored(shop, rows, ["select name from item where price = 4", "select name from item", "select oops", "no"])
    assert arm.metric == "execution_match" and arm.score.value == 0.25 and arm.interval == "wilson"
    assert arm.metrics["ast_match"] == 0 and arm.metrics["expected_empty_frac"] == 0
    assert [row.failure for row in arm.rows][2] == "no such column: oops"
    rows[1:3] = [example("q", "select name from nowhere", 2), example("q", "select name from", 3)]
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*no such table.*rows.jsonl:3: .*mend or drop the row"):
        scored(shop, rows, ["select 1"] * 4)


# Records and calls


def test_the_schema_that_records_share() -> None:
    records = [{"a": 1, "b": {"c": "x"}}, {"a": None, "b": {"c": "y", "d": [1, "z"]}}]
    schema = common_schema(records)
    assert schema["required"] == ["a", "b"] and schema["properties"]["a"]["type"] == ["null", "number"]
    assert schema["properties"]["b"]["required"] == ["c"] and not schema["additionalProperties"]


def test_schema_validity_beside_leaves(tmp_path: Path) -> None:
    rows = [example("q", '{"city": "Rome", "num": 2}', 1), example("r", '{"city": "Bonn", "num": 3}', 2)]
    task = TaskConfig(kind="extract", bar=0.5)
    arm = scored(task, rows, ['{"city": "Oslo", "num": 9}', '{"city": "Bonn", "num": "3"}'])
    assert arm.metrics["schema_valid"] == 0.5 and arm.score.value == 0.25
    assert arm.rows[1].failure and "$.num" in arm.rows[1].failure
    (tmp_path / "schema.json").write_text('{"properties": {"num": {"maximum": 5}}}')
    with_file = TaskConfig(kind="extract", bar=0.5, record_schema="schema.json").beside(tmp_path)
    assert scored(with_file, rows, ['{"num": 9}', '{"num": "3"}']).metrics["schema_valid"] == 0.5
    (tmp_path / "schema.json").write_text('{"type": "nothing"}')
    with pytest.raises(ConfigError, match="is no JSON Schema"):
        scored(with_file, rows, ["{}", "{}"])


TOOLS = json.dumps([
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "required": required}}}
    for name, required in (("weather", ["city"]), ("book", []))
])  # fmt: skip


@pytest.mark.parametrize(
    ("output", "exact", "f1", "fault"),
    [
        ('{"name": "weather", "arguments": {"days": 2.0, "city": "Rome"}}', 1, 1, None),
        ('Sure.\n<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>', 1, 1, None),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": 3}}', 0, 2 / 3, None),
        ('{"name": "weather", "arguments": {"days": 2}}', 0, 0.8, "weather lacks city"),
        ('{"name": "forecast", "arguments": {"city": "Rome", "days": 2}}', 0, 2 / 3, "calls 'forecast', which is not"),
        ("It is sunny in Rome.", 0, 0, "no call in the output"),
    ],
)
def test_calls_by_name_and_arguments(output: str, exact: float, f1: float, fault: str | None) -> None:
    row = example("Rome?", "", tools=TOOLS, calls=(ToolCall("weather", '{"city": "Rome", "days": 2}'),))
    values, found = score_calls(row, output)
    assert values == {"call_exact": exact, "call_f1": pytest.approx(f1)}
    assert (found or "").startswith(fault or "") and bool(found) == bool(fault)


def test_order_of_calls_counts_for_exactness_alone_and_a_call_too_many_is_one() -> None:
    calls = (ToolCall("weather", '{"city": "Rome"}'), ToolCall("book", '{"day": 1}'))
    row = example("q", "", tools=TOOLS, calls=calls)
    swapped = "[" + ", ".join(call.text for call in calls[::-1]) + "]"
    assert score_calls(row, swapped)[0] == {"call_exact": 0.0, "call_f1": 1.0}
    silent = example("hello", "Hi!", tools=TOOLS)
    assert score_calls(silent, "Hi there")[0] == {"call_exact": 1.0, "call_f1": 1.0}
    assert score_calls(silent, calls[0].text) == ({"call_exact": 0.0, "call_f1": 0.0}, "a call where none is expected")
    task = TaskConfig(kind="chat", metric="call_exact", bar=0.5)
    assert scored(task, [row, silent], [swapped, "Hi"]).score.value == 0.5
    assert "call_exact" not in scored(TaskConfig(kind="chat", bar=0.5), [example("a", "b")], ["b"]).metrics


# Slots


def test_slot_errors_by_hand() -> None:
    rows = [
        example("name[Blue Spice], eatType[pub], area[riverside]", "Blue Spice is a pub at the riverside.", 1),
        example(
            "name[Aromi], eatType[coffee shop], familyFriendly[no]", "Aromi, a coffee shop, is not for children.", 2
        ),
    ]
    assert slots_of(rows[0].user_text) == {"name": "Blue Spice", "eatType": "pub", "area": "riverside"}
    slots = Slots(rows)
    assert slots.match(rows[0], "The pub Blue Spice lies by the riverside") == (1.0, None)
    assert slots.match(rows[0], "Blue Spice is a pub") == (pytest.approx(2 / 3), "area is missing")
    # One missing, and the other row's value in its place.
    assert slots.match(rows[0], "Blue Spice is a coffee shop at the riverside")[0] == pytest.approx(1 / 3)
    assert slots.match(rows[1], "Aromi is a coffee shop")[0] == 1.0, "'no' is never said in that word"
    assert slots.match(rows[1], "A public house")[0] == pytest.approx(1 / 3)
    assert slots_of('{"team": "Ajax", "goals": 2, "ok": true}') == {"team": "Ajax", "goals": "2"}
    with pytest.raises(DataError, match="has no slots"):
        scored(TaskConfig(kind="generate", metric="slot_match", bar=0.5), [example("hello", "hi")], ["hi"])


# Mathematics


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("#### 0.5", "The answer is $\\frac{1}{2}$.", True),
        ("\\boxed{\\frac{\\sqrt{2}}{2}}", "so it is $\\boxed{\\frac{1}{\\sqrt{2}}}$", True),
        ("$\\{1, 2\\}$", "$\\{2, 1\\}$", True),
        ("$x^2 - 1$", "$(x-1)(x+1)$", True),
        ("#### 18", "She makes 18 dollars.", True),
        ("#### 18", "She makes 19 dollars.", False),
        ("#### 18", "no idea", False),
        ("$\\pi$", "$3$", False),
        ("#### 72", "Natalia sold 48 + 24 = 72 clips.", True),
    ],
)
def test_answers_equal_as_mathematics(expected: str, output: str, same: bool) -> None:
    assert math_equal(expected, output)[0] is same


def test_math_metrics_together() -> None:
    rows = [example("q", "#### 1/2", 1), example("r", "#### 3", 2)]
    arm = scored(TaskConfig(kind="math", metric="math_equal", bar=0.5), rows, ["0.5", "3"])
    assert arm.score.value == 1.0 and arm.metrics["final_number"] == 0.5
    assert metric_value(TaskConfig(kind="math", metric="math_equal", bar=0.5), [example("q", "$\\pi$")],
                        [Completion("$\\pi$", 1, 1, 0.0)], None) == 1.0  # fmt: skip


def test_a_missing_package_is_told_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlglot", None)
    monkeypatch.setattr(more_metrics, "_is_there", lambda metric: False)
    rows = [example("q", "select 7 as seven")]
    arm = scored(TaskConfig(kind="sql", bar=0.5), rows, ["select 7 as seven"])
    assert "ast_match" not in arm.metrics and "shoestring[sql]" in arm.details["left_out"]["ast_match"]
    metrics_sql._tree.cache_clear()
    with pytest.raises(MissingDependency, match=r"shoestring\[sql\]"):
        scored(TaskConfig(kind="sql", metric="ast_match", bar=0.5), rows, ["select 7 as seven"])


# The user's own

FUNCTION = """
print("a metric may print")

def score(row):
    if row["output"] == "boom":
        raise RuntimeError("no such thing")
    if row["output"] == "two":
        return 2
    if row["output"] == "part":
        return {"score": 0.5, "failure": "half of it"}
    return row["output"] == row["expected"]
"""
PROGRAM = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    if row["output"] == "boom":
        sys.exit("cannot score " + row["id"])
    if row["output"] == "skip":
        continue
    print(json.dumps({"score": float(row["output"] == row["expected"])}) if row["output"] != "junk" else "junk")
"""


def test_a_function_of_the_user_is_the_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    task = TaskConfig(kind="generate", metric="mine.py:score", bar=0.5).beside(tmp_path)
    rows = [example("a", "x", 1), example("b", "y", 2), example("c", "z", 3)]
    arm = scored(task, rows, ["x", "part", "no"])
    assert (arm.score.value, arm.metric, arm.rows[1].failure) == (0.5, "mine.py:score", "half of it")
    assert "chrf" in arm.metrics and capsys.readouterr().out == ""
    assert task.files() == [tmp_path / "mine.py"]
    for output, why in (("boom", "RuntimeError: no such thing"), ("two", "a number from 0 to 1")):
        with pytest.raises(DataError, match=rf"rows.jsonl:2 .*{why}"):
            scored(task, rows, ["x", output, "no"])
    with pytest.raises(ConfigError, match="has no function 'other'"):
        scored(TaskConfig(kind="generate", metric="mine.py:other", bar=0.5).beside(tmp_path), rows, ["x"] * 3)


def test_a_command_of_the_user_is_the_metric(tmp_path: Path) -> None:
    (tmp_path / "grade.py").write_text(PROGRAM)
    task = TaskConfig(kind="generate", metric_command=f"{sys.executable} grade.py", bar=0.5).beside(tmp_path)
    rows = [example("a", "x", 1), example("b", "y", 2), example("c", "z", 3)]
    arm = scored(task, rows, ["x", "no", "z"])
    assert (arm.metric, arm.score.value) == ("command", pytest.approx(2 / 3))
    assert task.files() == [tmp_path / "grade.py"]
    for output, why in (
        ("boom", "ended with status 1: cannot score .* answered 1 of 3 rows, the next is .*rows.jsonl:2"),
        ("skip", "answered 2 lines to 3 rows"),
        ("junk", "rows.jsonl:2 .*'junk' is no JSON"),
    ):
        with pytest.raises(DataError, match=why):
            scored(task, rows, ["x", output, "z"])
    missing = TaskConfig(kind="generate", metric_command="no-such-program", bar=0.5).beside(tmp_path)
    with pytest.raises(ConfigError, match="cannot be run"):
        scored(missing, rows, ["x"] * 3)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("metric: execution_match", "there is no database"),
        ("metric: exact, metric_command: x", "exclude each other"),
        ("metric: command", "needs metric_command"),
        ("record_schema: s.json", "is of task kind extract"),
        ("metric: exact_mach", "did you mean 'exact_match'"),
    ],
)
def test_a_run_file_whose_metric_cannot_be_is_refused(more: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_run_file(f"name: x\ntask: {{kind: sql, bar: 0.5, {more}}}\ndata: {{train: a.jsonl}}\n")
