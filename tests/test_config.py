"""The run file: one correct file read, every kind of fault named with its line and a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from shoestring.config import METRICS_BY_KIND, PLANNED_KEYS, RunConfig, json_schema, load_run_file, parse_run_file
from shoestring.errors import ConfigError

GOOD = """\
name: tickets
task:
  kind: extract
  bar: 0.85
data:
  train: tickets.jsonl
"""
JUDGE = """\
judge:
  endpoints:
  - {name: big, base_url: http://x/v1, model: m, usd_per_million_input_tokens: 1, usd_per_million_output_tokens: 2}
"""
OPEN = GOOD.replace("kind: extract", "kind: generate\n  metric: judge")


def test_a_short_run_file_says_everything() -> None:
    config = parse_run_file(GOOD)
    assert (config.name, config.task.kind, config.task.bar) == ("tickets", "extract", 0.85)
    assert config.task.metric == "leaf_f1"  # the first metric of the kind
    assert config.data.train == ["tickets.jsonl"]  # one file or a list of them
    assert config.models == ["embedded"]
    assert config.budget_usd == 10.0


@pytest.mark.parametrize("kind", METRICS_BY_KIND)
def test_every_metric_of_a_kind_is_accepted_and_the_first_is_the_default(kind: str) -> None:
    for metric in METRICS_BY_KIND[kind]:
        text = GOOD.replace("kind: extract", f"kind: {kind}\n  metric: {metric}")
        text += JUDGE if metric == "judge" else ""
        text = text.replace("execution_match", "execution_match\n  database: shop.db")
        assert parse_run_file(text).task.metric == metric
    assert parse_run_file(GOOD.replace("extract", kind)).task.metric == METRICS_BY_KIND[kind][0]


def test_what_a_run_resolves_to_reads_back_equal() -> None:
    config = parse_run_file(GOOD + "train: {lora_rank: 8}\nmodels: Qwen/Qwen3-0.6B\n")
    again = parse_run_file(yaml.safe_dump(config.model_dump(mode="json")))
    assert again == config
    assert again.models == ["Qwen/Qwen3-0.6B"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("bar: 0.85", "bar: 1.5"), ["run file:4", "task.bar = 1.5", "less than or equal to 1"]),
        (GOOD.replace("bar: 0.85", "bar: -1"), ["run file:4", "greater than or equal to 0"]),
        (GOOD.replace("bar: 0.85", "barr: 0.85"), ["unknown key 'task.barr'", "did you mean 'bar'", "is missing"]),
        (GOOD.replace("bar: 0.85", "bar: high"), ["task.bar = 'high'", "valid number"]),
        (GOOD.replace("extract", "extrct"), ["run file:3", "'extrct'", "'extract'"]),
        (GOOD.replace("bar:", "metric: accuracy\n  bar:"), ["accuracy", "'extract'", "leaf_f1, exact_record"]),
        (GOOD.replace("bar:", "metric: leaf_f2\n  bar:"), ["did you mean 'leaf_f1'"]),
        (GOOD.replace("name: tickets", "name: ../evil"), ["run file:1", "name = '../evil'"]),
        (GOOD.replace("train: tickets.jsonl", "train: []"), ["data.train", "at least 1"]),
        (GOOD + "learning_rate: 1e-3\n", ["run file:7", "unknown key 'learning_rate'"]),
        (GOOD + "budget: 3\n", ["unknown key 'budget'", "did you mean 'budget_usd'"]),
        (GOOD + "name: again\n", ["run file:7", "'name' is given twice"]),
        (OPEN, ["judge", "needs this section, with endpoints"]),
        (GOOD + JUDGE, ["run file:7", "for open text", "extract"]),
        (OPEN + JUDGE + JUDGE.split("\n")[2] + "\n", ["two have one name"]),
        (OPEN + JUDGE + "  criteria: ['']\n", ["criteria", "one is empty"]),
        (OPEN + JUDGE + "  min_words: 9\n  max_words: 3\n", ["min_words 9 is above max_words 3"]),
        (GOOD + "serve: {}\n", ["'serve'", "not used by this version yet"]),
        (
            GOOD + "decide:\n  endpoints:\n  - name: x\n    url: y\n",
            ["unknown key 'decide.endpoints.0.url'", "base_url"],
        ),
        (GOOD + "curate: &x [*x]\n", ["run file:7", "contains itself", "write it out"]),
        (GOOD + "curate: &x {eval_rows: *x}\n", ["run file:7", "contains itself"]),
        (GOOD + "curate: " + "[" * 1000, ["nested too deep"]),
        ("", ["is empty", "shoestring init"]),
        (GOOD.replace("0.85", "yes"), ["run file:", "task.bar = True", "give a number"]),
        (GOOD + "train: {patience: true}\n", ["train.patience = True"]),
        (GOOD + "train: {num_epochs: no}\n", ["train.num_epochs = False"]),
        ("- a\n", ["mapping", "list"]),
        ("name: [\n", ["run file:2", "not valid YAML"]),
        ("\x00", ["not valid YAML"]),
    ],
)
def test_faults_are_named_with_line_and_way_out(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_file(text)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert caught.value.exit_code == 2


def test_aliases_of_aliases_are_read_once_each() -> None:
    doubling = "".join(f"k{i}: &k{i} [*k{i - 1}, *k{i - 1}]\n" for i in range(1, 60))
    with pytest.raises(ConfigError, match="unknown key 'k59'"):
        parse_run_file(f"{GOOD}k0: &k0 [1]\n{doubling}")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_file("name: x\ntask: {kind: extract, bar: 7}\ndata: {train: a, evil: b}\n")
    assert len(str(caught.value).splitlines()) == 2


def test_files_that_are_no_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD)
    (tmp_path / "photo.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe")
    with pytest.raises(ConfigError, match=r"no such run file \(did you mean 'run.yaml'\?\)"):
        load_run_file(tmp_path / "rum.yaml")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_run_file(tmp_path / "photo.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_run_file(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run_file(tmp_path / "run.yaml" / "below")


def test_schema_describes_every_key_and_refuses_others() -> None:
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        assert section["additionalProperties"] is False
        for name, key in section["properties"].items():
            described = key.get("description") or "$ref" in key
            assert described or key.get("anyOf"), f"{section['title']}.{name} has no description"
    assert schema["required"] == ["name", "task", "data"]
    assert not set(PLANNED_KEYS) & set(schema["properties"])
    json.dumps(schema)


def test_config_cannot_be_changed_by_accident() -> None:
    config = parse_run_file(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.task.bar = 0.1  # type: ignore[misc]
    assert isinstance(config, RunConfig)
