"""Importing promptfoo, OpenAI Evals and inspect: rows, graders, the run file, and what is listed as left."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from shoestring.cli.main import run as command
from shoestring.config import load_run_file
from shoestring.errors import BadInput
from shoestring.evaluate.graders import GRADERS, graded, passes
from shoestring.evaluate.score import metric_value
from shoestring.files import read_json, read_jsonl
from shoestring.imports import inspect_logs, openai_evals, promptfoo, suites
from shoestring.messages import Example, Message
from shoestring.records import Completion


def scores(folder: Path, outputs: list[str]) -> list[float]:
    """Of each imported row, by the imported metric, as a run computes it."""
    task = load_run_file(folder / "run.yaml").task.beside(folder)
    rows = []
    for line, row in enumerate(read_jsonl(folder / "rows.jsonl"), 1):
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        rows.append(Example(messages, (len(messages) - 1, len(messages)), "rows.jsonl", line))
    assert len(rows) == len(outputs)
    return [metric_value(task, [r], [Completion(o, 1, 1, 0.0)], None) for r, o in zip(rows, outputs, strict=True)]


@pytest.mark.parametrize(
    ("grader", "right", "wrong"),
    [
        ({"type": "equals", "value": "Rome"}, "Rome", "rome"),
        ({"type": "equals", "value": {"a": [1]}}, ' {"a":[1]}', '{"a": [2]}'),
        ({"type": "not-equals", "value": "x"}, "y", "x"),
        ({"type": "contains", "value": "Rom"}, "in Rome", "in rome"),
        ({"type": "icontains", "value": "rom"}, "in ROME", "in Oslo"),
        ({"type": "contains-all", "value": ["a", "b"]}, "b a", "a"),
        ({"type": "icontains-any", "value": ["x", "y"]}, "Y", "z"),
        ({"type": "starts-with", "value": "Yes"}, "Yes, it is", "Oh Yes"),
        ({"type": "ends-with", "value": ["42"]}, "so it is 42.", "42 it is"),
        ({"type": "either-contains", "value": ["the Eiffel Tower"]}, "Eiffel tower!", "Louvre"),
        ({"type": "regex", "value": r"^\d{3}$"}, "123", "1234"),
        ({"type": "is-json", "value": {"required": ["a"]}}, '{"a": 1}', '{"b": 1}'),
        ({"type": "is-json"}, "[1]", "here: [1]"),
        ({"type": "contains-json", "value": {"required": ["a"]}}, 'here: {"a": 1}', "none"),
        ({"type": "levenshtein", "value": "kitten", "threshold": 3}, "sitting", "sittings!"),
        ({"type": "fuzzy", "value": "this is a test", "threshold": 0.96}, "this is a test!", "this is a text!?"),
        ({"type": "word-count", "value": {"min": 2, "max": 3}}, "a b", "a"),
        ({"type": "set", "value": [{"type": "contains", "value": c} for c in "ab"], "threshold": 0.5}, "a", "c"),
    ],
)
def test_graders(grader: dict, right: str, wrong: str) -> None:
    assert passes(grader, right) and not passes(grader, wrong)


def test_a_row_passes_by_all_graders_or_by_the_weighted_share() -> None:
    graders = [{"type": "contains", "value": "a", "weight": 3}, {"type": "contains", "value": "b"}]
    assert graded(graders, "a") == {"score": 0.0, "failure": 'failed contains "b"'}
    assert graded(graders, "a", 0.75)["score"] == 1.0 and graded(graders, "b", 0.75)["score"] == 0.0
    assert set(GRADERS) >= {"equals", "contains", "icontains", "regex", "is-json"}


def test_graders_decide_as_promptfoo_does() -> None:
    """Its own verdicts on 77 outputs, recorded."""
    said = read_json(Path(__file__).with_name("promptfoo_verdicts.json"))
    assert len(said["cases"]) == 77 and {case["success"] for case in said["cases"]} == {True, False}
    for case in said["cases"]:
        assert (graded(case["graders"], case["output"], case["threshold"])["score"] == 1.0) is case["success"], case


PROMPTFOO = """
description: Capital cities
prompts:
  - 'What is the capital of {{country}}?'
  - file://chat.json
  - file://made.py
providers: [openai:gpt-4o-mini]
defaultTest:
  assert:
    - {type: llm-rubric, value: The answer names one city.}
    - {type: latency, threshold: 5000}
tests:
  - vars: {country: [Italy, Norway]}
    assert: [{type: regex, value: '^[A-Z]'}, {type: javascript, value: output.length < 9}]
  - vars: {country: France}
    assert:
      - {type: equals, value: Paris}
  - vars: {country: Peru, city: Lima}
    assert: [{type: icontains, value: '{{city}}'}, {type: similar, value: Lima, threshold: 0.8}]
  - file://more.csv
"""


@pytest.fixture
def promptfoo_folder(tmp_path: Path) -> Path:
    (tmp_path / "promptfooconfig.yaml").write_text(PROMPTFOO)
    (tmp_path / "chat.json").write_text(
        '[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Capital of {{country}}?"}]'
    )
    (tmp_path / "more.csv").write_text(
        'country,__expected,__expected2\nSpain,"contains-any: Madrid, madrid",\nCuba,Havana,grade: The tone is kind.\n'
    )
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return tmp_path


def test_promptfoo_becomes_rows_graders_and_criteria(promptfoo_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = promptfoo_folder / "out"
    arguments = ["import", "promptfoo", str(promptfoo_folder), "--train", str(promptfoo_folder / "train.jsonl")]
    assert command([*arguments, "--out", str(out), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    rows = read_jsonl(out / "rows.jsonl")
    asked = [row["messages"][0]["content"] for row in rows]
    assert asked == [f"What is the capital of {c}?" for c in ("Italy", "Norway", "France", "Peru", "Spain", "Cuba")]
    assert [row["messages"][-1]["content"] for row in rows] == ["-", "-", "Paris", "Lima", "Madrid", "Havana"]
    assert (said["rows"], said["rows_without_reference"], said["metric"]) == (6, 2, "graders.py:score")
    assert said["criteria"] == ["The answer names one city."]
    left = {(one["place"], one["what"]) for one in said["not_carried_over"]}
    assert {
        ("prompts", "made.py"), ("prompts", "chat.json"), ("tests[0]", "assert javascript"),
        ("tests[0]", "assert latency"), ("tests[2]", "assert similar"),
        ("more.csv:3", "rubric 'The tone is kind.'"),
    } <= left  # fmt: skip
    assert all(one["why"] for one in said["not_carried_over"])
    assert scores(out, ["Rome", "oslo", "Paris", "it is LIMA", "madrid", "Cuba"]) == [1, 0, 1, 1, 1, 0]
    config = load_run_file(out / "run.yaml")
    assert (config.name, config.data.eval) == ("Capital-cities", ["rows.jsonl"])
    assert config.task.beside(out).files() == [(out / name).resolve() for name in ("graders.py", "graders.jsonl")]

    assert command([*arguments, "--out", str(out)]) == 2  # what is there is kept
    assert command([*arguments, "--out", str(out), "--force", "--prompt", "2"]) == 0
    assert read_jsonl(out / "rows.jsonl")[0]["messages"][0] == {"role": "system", "content": "Be short."}
    assert command(["import", "promptfoo", str(promptfoo_folder), "--out", str(out / "x")]) == 2
    assert "2 of 6 rows have no answer to learn from, such as tests[0]" in capfd.readouterr().err


def test_rubrics_alone_want_a_judge_with_a_price(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    default = {"assert": [{"type": "llm-rubric", "value": "It is: kind"}]}
    config = {"prompts": ["Reply to {{m}}"], "defaultTest": default,
              "tests": [{"vars": {"m": "lost card"}}, {"vars": {"m": "late parcel"}}]}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(config))
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    arguments = ["import", "promptfoo", str(tmp_path / "c.json"), "--train", str(tmp_path / "train.jsonl"),
                 "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    assert command(arguments) == 2
    assert "rubrics alone score 2 rows" in capfd.readouterr().err
    assert command([*arguments, "--judge", "nobody"]) == 2
    capfd.readouterr()
    name = next(iter(suites._priced()))
    assert command([*arguments, "--judge", name]) == 0
    assert json.loads(capfd.readouterr().out)["metric"] == "judge"
    config = load_run_file(tmp_path / "out/run.yaml")
    assert config.judge and config.judge.criteria == ["It is: kind"] and not config.judge.use_reference
    assert (config.judge.endpoints[0].model, config.task.metric) == (name, "judge")


def test_a_suite_of_plain_answers_gets_the_kinds_own_metric_and_is_split(tmp_path: Path) -> None:
    tests = [{"vars": {"t": f"thing {i}"}, "assert": [{"type": "equals", "value": "ab"[i % 2]}]} for i in range(40)]
    (tmp_path / "c.json").write_text(json.dumps({"prompts": ["Sort: {{t}}"], "tests": tests}))
    said = suites.write(promptfoo.read(tmp_path / "c.json"), tmp_path / "out", None, ["shoestring-1m"])
    assert (said["kind"], said["metric"]) == ("classify", "accuracy")
    assert not (tmp_path / "out/graders.py").exists()
    assert load_run_file(tmp_path / "out/run.yaml").data.train == ["rows.jsonl"]


def test_rows_that_ask_the_same_are_one_or_named(tmp_path: Path) -> None:
    def test(value: str, kind: str = "equals") -> dict:
        return {"vars": {"t": "x"}, "assert": [{"type": kind, "value": value}]}

    tests = [test("a"), test("a", "contains"), test("b")]
    (tmp_path / "c.json").write_text(json.dumps({"prompts": ["{{t}}"], "tests": tests}))
    said = suites.write(promptfoo.read(tmp_path / "c.json"), tmp_path / "out", None, ["shoestring-1m"])
    assert said["rows"] == 1 and said["graders"] == {"equals": 1, "contains": 1}
    assert said["not_carried_over"][0]["why"] == "asks what tests[0] asks, and wants another answer"


HOSTED = {
    "object": "eval", "id": "eval_1", "name": "Ticket sorting",
    "data_source_config": {"type": "custom"},
    "testing_criteria": [
        {"type": "string_check", "name": "label", "operation": "eq", "input": "{{sample.output_text}}",
         "reference": "{{item.label}}"},
        {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.5,
         "input": "{{ sample.output_text }}", "reference": "{{ item.label }}"},
        {"type": "text_similarity", "name": "far", "evaluation_metric": "bleu", "pass_threshold": 0.5,
         "input": "{{ sample.output_text }}", "reference": "{{ item.label }}"},
        {"type": "label_model", "name": "polite", "model": "gpt-4o", "labels": ["polite", "rude"],
         "passing_labels": ["polite"], "input": [
             {"role": "developer", "content": "Say whether the reply is polite."},
             {"role": "user", "content": "{{sample.output_text}}"}]},
        {"type": "score_model", "name": "good", "model": "gpt-4o", "range": [1, 5], "pass_threshold": 4,
         "input": [{"role": "system", "content": "Score the reply to {{item.text}}."}]},
        {"type": "python", "name": "mine", "source": "def grade(sample, item): return 1.0"},
    ],
}  # fmt: skip
RUN = {
    "object": "eval.run", "data_source": {
        "type": "completions", "source": {"type": "file_id", "id": "file-1"},
        "input_messages": {"type": "template", "template": [
            {"role": "developer", "content": "Sort the ticket."},
            {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{ item.text }}"}}]},
    },
}  # fmt: skip


def test_a_hosted_eval_of_openai(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/eval.json").write_text(json.dumps(HOSTED))
    (tmp_path / "saved/runs.json").write_text(json.dumps({"object": "list", "data": [RUN]}))
    items = [{"text": f"my card {i}", "label": "card"} for i in range(3)]
    (tmp_path / "saved/data.jsonl").write_text("".join(json.dumps({"item": item}) + "\n" for item in items))
    output = {"object": "eval.run.output_item", "datasource_item": items[0], "sample": {}}
    (tmp_path / "saved/output_items.json").write_text(json.dumps({"object": "list", "data": [output]}))
    said = suites.write(openai_evals.read(tmp_path / "saved"), tmp_path / "out", None, ["shoestring-1m"])
    assert said["rows"] == 3 and said["graders"] == {"equals": 3, "fuzzy": 3}
    first = read_jsonl(tmp_path / "out/rows.jsonl")[0]["messages"]
    assert [m["role"] for m in first] == ["system", "user", "assistant"] and first[1]["content"] == "my card 0"
    assert said["criteria"] == [
        "By these instructions the answer is labelled polite: Say whether the reply is polite.",
        "By these instructions the answer is given at least 4 on a scale from 1 to 5: Score the reply to (see there).",
    ]
    left = {one["what"] for one in said["not_carried_over"]}
    assert left == {"text_similarity 'far'", "python 'mine'"} and len(said["not_carried_over"]) == 6
    assert scores(tmp_path / "out", ["card", "car", "Card"]) == [1, 0, 0]
    assert "judge" in (tmp_path / "out/run.yaml").read_text()


def test_files_of_the_openai_evals_repository(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    (registry / "evals").mkdir(parents=True)
    (registry / "data/cities").mkdir(parents=True)
    (registry / "evals/cities.yaml").write_text(
        "cities:\n  id: cities.dev.v0\n  metrics: [accuracy]\n"
        "cities.dev.v0:\n  class: evals.elsuite.basic.includes:Includes\n"
        "  args: {samples_jsonl: cities/samples.jsonl, ignore_case: true}\n"
    )
    samples = [
        {"input": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Italy?"}], "ideal": "Rome"},
        {"input": "Bolivia?", "ideal": ["Sucre", "La Paz"]},
    ]
    (registry / "data/cities/samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    suite = openai_evals.read(registry / "evals/cities.yaml")
    said = suites.write(suite, tmp_path / "out", None, ["shoestring-1m"])
    assert (suite.name, said["rows"], said["graders"]) == ("cities", 2, {"icontains-any": 2})
    assert scores(tmp_path / "out", ["it is ROME", "la paz"]) == [1, 1]
    assert scores(tmp_path / "out", ["Oslo", "Lima"]) == [0, 0]
    (registry / "data/cities/samples.jsonl").unlink()
    with pytest.raises(BadInput, match=r"its samples 'cities/samples\.jsonl' are not beside it"):
        openai_evals.read(registry / "evals/cities.yaml")
    (tmp_path / "nothing.json").write_text("{}")
    with pytest.raises(BadInput, match="no eval is in it"):
        openai_evals.read(tmp_path / "nothing.json")


INSPECT = {
    "version": 2, "status": "success",
    "eval": {"task": "suite/capitals", "scorers": [{"name": "match"}, {"name": "f1"}, {"name": "model_graded_fact"}],
             "model_roles": {"grader": {"model": "openai/gpt-4o"}}},
}  # fmt: skip
SAMPLES = [
    {"id": 1, "epoch": 1, "input": "Capital of Italy?", "target": "Rome"},
    {"id": 1, "epoch": 2, "input": "Capital of Italy?", "target": "Rome"},
    {"id": 2, "epoch": 1, "input": [{"role": "user", "content": "Peru?"}], "target": ["Lima", "lima"]},
    {"id": 3, "epoch": 1, "input": [{"role": "user", "content": [{"type": "image", "image": "x"}]}], "target": "y"},
]


def write_zstd_archive(path: Path, files: dict[str, dict]) -> None:
    """As inspect writes archives since zip method 93; zipfile writes it from Python 3.14 on."""
    import struct
    import zlib

    import pyarrow

    packed, directory = b"", b""
    for name, value in files.items():
        whole, raw = json.dumps(value).encode(), name.encode()
        data = pyarrow.compress(whole, codec="zstd", asbytes=True)
        sizes = (zlib.crc32(whole), len(data), len(whole), len(raw), 0)
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 63, 63, 0, 93, 0, 33, *sizes, 0, 0, 0, 0, len(packed)) + raw
        packed += struct.pack("<4s5H3I2H", b"PK\3\4", 63, 0, 93, 0, 33, *sizes) + raw + data
    ends = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(files), len(files), len(directory), len(packed), 0)
    path.write_bytes(packed + directory + ends)


@pytest.mark.parametrize("form", ["eval", "zstd", "json"])
def test_a_log_of_inspect(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"log.{form}"
    if form == "zstd":
        write_zstd_archive(
            path, {"header.json": INSPECT} | {f"samples/{s['id']}_{s['epoch']}.json": s for s in SAMPLES}
        )
    elif form == "json":
        path.write_text(json.dumps({**INSPECT, "samples": SAMPLES}))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(INSPECT))
            for sample in SAMPLES:
                archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    suite = inspect_logs.read(path)
    said = suites.write(suite, tmp_path / "out", None, ["shoestring-1m"])
    assert (suite.name, said["rows"], said["graders"]) == ("capitals", 2, {"ends-with": 2})
    assert said["criteria"] == ["Its facts agree with the reference answer."]
    assert sorted(one["what"] for one in said["not_carried_over"]) == ["sample", "scorer f1", "scorer f1"]
    assert scores(tmp_path / "out", ["It is Rome.", "LIMA"]) == [1, 1]
    path.write_text("{}")
    with pytest.raises(BadInput, match="no log of inspect"):
        inspect_logs.read(path)


def test_an_imported_suite_is_curated_and_decided_as_any_run(tmp_path: Path) -> None:
    """Real parts: rows pass curation, the embedded model answers, the imported graders score."""
    from shoestring.recipe import Run

    tests = [
        {"vars": {"t": f"parcel {i} to {c}"},
         "assert": [{"type": "icontains", "value": c}, {"type": "regex", "value": "."}]}
        for i, c in enumerate(["Rome", "Oslo", "Lima", "Bonn"] * 15)
    ]  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps({"prompts": ["Name the city: {{t}}"], "tests": tests}))
    suites.write(promptfoo.read(tmp_path / "c.json"), tmp_path, None, ["shoestring-1m"])
    text = (tmp_path / "run.yaml").read_text() + "decide: {arms: [zero_shot], max_rows: 20}\n"
    (tmp_path / "run.yaml").write_text(text)
    run = Run.from_file(tmp_path / "run.yaml", runs_dir=tmp_path / "runs")
    run.execute(until="decide")
    (arm,) = read_json(run.folder / "decide.json")["result"]["arms"]
    assert arm["metric"] == "graders.py:score" and arm["num_rows"] > 5
    for row in arm["rows"]:
        city = row["prompt"].split()[-1]
        assert row["score"] == (city.casefold() in row["output"].casefold()), row


def test_broken_yaml_is_named_by_line(tmp_path: Path) -> None:
    broken = tmp_path / "promptfooconfig.yaml"
    broken.write_text("prompts: [a\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 2: not valid YAML"):
        suites.read_yaml(broken)


def test_an_ideal_that_is_no_json_is_listed(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text("sums.v0:\n  class: a.b:JsonMatch\n  args: {samples_jsonl: s.jsonl}\n")
    rows = [{"input": "one", "ideal": "{broken"}, {"input": "two", "ideal": '{"a": 1}'}]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = openai_evals.read(tmp_path / "sums.yaml")
    assert [case.graders[0]["value"] for case in suite.cases] == [{"a": 1}]
    assert [left.place for left in suite.left] == ["s.jsonl:1"] and "no JSON" in suite.left[0].why
