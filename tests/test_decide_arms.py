"""The arms of the decide stage: nearest examples, chosen instructions, RAG, each a record that is not made twice."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from shoestring.cli.main import run as command_line
from shoestring.config import EndpointConfig, TaskConfig, parse_run_file
from shoestring.decide.answers import AnswerFile
from shoestring.decide.baselines import nearest_prompts
from shoestring.decide.client import Client, Pace
from shoestring.decide.instructions import Candidate, candidates_of, choose, requests_for, written
from shoestring.decide.retrieval import Retriever
from shoestring.errors import ConfigError, ModelError, ShoestringError
from shoestring.files import read_json, read_jsonl, write_jsonl
from shoestring.ladder import model_of, rungs_of
from shoestring.recipe import Run
from shoestring.records import Completion, Example, Message
from shoestring.stages import arms, deciding, retrieving
from tests.tiny import make_model

CLASSIFY = TaskConfig(kind="classify", bar=0.8)


def row(text: str, answer: str) -> Example:
    return Example((Message("user", text), Message("assistant", answer)), (1, 2))


def words(messages) -> int:
    return sum(len(m.content.split()) for m in messages)


# Nearest examples


def test_nearest_shots_are_the_likest_training_rows_the_likest_last() -> None:
    train = [row("block my card", "block"), row("block my old card now", "block"), row("where is the order", "track")]
    retriever = Retriever([e.user_text for e in train])
    held_out = [row("please block my card", "block"), row("order", "track")]
    prompts, told = nearest_prompts(held_out, train, retriever, "Do.", 2, words, 100, 5)
    assert [m.content for m in prompts[0]] == [
        "Do.", "block my old card now", "block", "block my card", "block", "please block my card",
    ]  # fmt: skip
    assert [m.content for m in prompts[1]][1:3] == ["where is the order", "track"]
    assert told == {"num_shots": 2, "mean_shots": 1.5, "rows_with_near_shot": 0}


def test_a_held_out_row_is_never_a_shot_and_near_copies_are_counted() -> None:
    held_out = [row("a b c d e f g h i j", "x")]
    train = [*held_out, row("a b c d e f g h i k", "x"), row("a z", "y")]
    retriever = Retriever([e.user_text for e in train])
    (prompt,), told = nearest_prompts(held_out, train, retriever, "", 2, words, 100, 5)
    assert [m.content for m in prompt if m.role == "user"] == ["a z", "a b c d e f g h i k", "a b c d e f g h i j"]
    assert told["rows_with_near_shot"] == 1  # 9 words of 11


def test_the_least_alike_are_left_out_until_the_prompt_fits() -> None:
    train = [row("pump one", "a"), row("pump two words more", "b")]
    retriever = Retriever([e.user_text for e in train])
    (prompt,), told = nearest_prompts([row("pump one more", "a")], train, retriever, "", 2, words, 12, 5)
    assert told["num_shots"] == 1 and words(prompt) <= 7


# Instructions


def test_candidates_are_the_tasks_own_the_derived_and_the_given_each_once() -> None:
    train = [row("x", "a"), row("y", "b")]
    task = TaskConfig(kind="classify", bar=0.8, instruction="Pick a queue.")
    got = candidates_of(task, train, ("a", "b"), ["Pick a queue.", "Say a or b.", " "])
    assert [(c.text, c.origin) for c in got] == [
        ("Pick a queue.", "task.instruction"),
        ("Classify the text. Answer with exactly one of: a, b", "derived"),
        ("Say a or b.", "decide.instructions"),
    ]
    assert len(candidates_of(CLASSIFY, train, ("a", "b"), [])) == 1


def test_the_instruction_that_scores_best_on_training_rows_is_chosen() -> None:
    sample = [row("red", "warm"), row("blue", "cold"), row("green", "cold"), row("pink", "warm")]
    answers = {e.user_text: e.completion for e in sample}

    def generate(prompts, progress):
        obeys = "carefully" in prompts[0][0].content
        return [Completion(answers[p[-1].content] if obeys else "warm", 10, 2, 0.0, 0.25) for p in prompts]

    candidates = [Candidate(text, "given") for text in ("Answer.", "Answer carefully.", "w " * 90)]
    chosen = choose(candidates, sample, generate, CLASSIFY, ("warm", "cold"), words, 50)
    assert chosen.best.text == "Answer carefully." and chosen.best.score == 1.0
    assert [c.score for c in chosen.candidates] == [0.5, 1.0, None]  # the last does not fit
    assert (chosen.num_rows, chosen.num_tokens, chosen.cost_usd) == (4, 2 * 4 * 12, 2.0)
    assert choose(candidates[:1] * 2, sample, generate, CLASSIFY, None, words, 50).best is not None


def test_a_model_is_asked_with_other_examples_each_time_and_no_instruction_is_left_out() -> None:
    train = [row(f"text {i}", "ab"[i % 2]) for i in range(40)]
    asked = requests_for("Classify.", train, 3, seed=0)
    assert len({p[-1].content for p in asked}) == 3
    assert all(p[-1].content.endswith("Present instruction: Classify.") for p in asked)
    answers = [
        Completion('"Do it well."', 1, 1, 0.0), Completion("Do it well.", 1, 1, 0.0), Completion(" ", 1, 1, 0.0),
        Completion("cut off", 1, 1, 0.0, stopped=False), Completion("x" * 3000, 1, 1, 0.0),
    ]  # fmt: skip
    found, num_unusable = written(answers, "m")
    assert [(c.text, c.origin) for c in found] == [("Do it well.", "written by m")] and num_unusable == 3


# Pace


def test_requests_are_spaced_evenly() -> None:
    assert [Pace(None).wait_s() for _ in range(3)] == [0, 0, 0]
    pace = Pace(6)  # one in ten seconds
    first, second, third = (pace.wait_s() for _ in range(3))
    assert first == 0 and 9 < second <= 10 and 19 < third <= 20


# In a run


RUN_FILE = """
name: bays
task: {kind: generate, metric: exact_match, bar: 0.5}
data: {train: rows.jsonl, documents: docs}
models: shoestring-1m
retrieval: {chunk_tokens: 32, num_chunks: 2}
curate: {eval_rows: 30}
decide: {arms: [zero_shot, nearest, rag], max_rows: 20, num_shots: 2}
train: {num_threads: 1, num_epochs: 3, num_evals: 2, passages: with}
evaluate: {regression: false}
"""
PLACES = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "frost",
    "grove",
    "heron",
    "iris",
    "jade",
    "kelp",
    "lotus",
    "maple",
)
THINGS = ("pump", "valve", "motor", "filter", "sensor", "relay", "switch", "fuse")


def write_run(folder: Path, more: str = "") -> Path:
    """Where things are is in the documents alone, and an answer is the code and nothing else: facts and form."""
    draw = random.Random(0)
    codes = {(p, t): f"{draw.choice('ABCDEFGH')}{draw.randrange(100, 999)}" for p in PLACES for t in THINGS}
    rows = [{"prompt": f"Where is the {p} {t}?", "completion": code} for (p, t), code in codes.items()]
    draw.shuffle(rows)
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "docs").mkdir(exist_ok=True)
    for place in PLACES:
        said = [f"The {place} {thing} is kept in bay {codes[place, thing]}." for thing in THINGS]
        (folder / "docs" / f"{place}.md").write_text("\n\n".join(said))
    (folder / "run.yaml").write_text(RUN_FILE + more)
    return folder / "run.yaml"


def opened(folder: Path) -> Run:
    return Run.from_file(folder / "run.yaml", runs_dir=folder / "runs")


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bays")
    write_run(folder)
    opened(folder).execute(until="decide")
    return folder


def test_its_json_has_the_advice_and_its_evidence(decided: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = ["decide", str(decided / "run.yaml"), "--runs-dir", str(decided / "runs"), "--json"]
    assert command_line(told) == 0
    verdict = json.loads(capfd.readouterr().out)["verdict"]
    assert verdict["advice"] and verdict["bar"] == 0.5 and "lines" in verdict["evidence"]


def test_rag_is_measured_with_its_recall(decided: Path) -> None:
    rag = next(a for a in read_json(decided / "runs/bays/decide.json")["result"]["arms"] if a["kind"] == "rag")
    told = rag["details"]["retrieval"]
    assert rag["arm"] == "RAG shoestring-1m" and rag["num_rows"] == 20
    assert told["recall"]["num_findable"] == told["recall"]["num_rows"] == 20
    assert told["recall"]["at"]["1"]["value"] > 0.9 and told["by"] == "BM25" and told["num_passages"] > 20
    assert all("Passages" not in r["prompt"] and r["num_prompt_tokens"] > 30 for r in rag["rows"])
    held = read_json(decided / "runs/bays/decide.json")["result"]["arms"]
    zero = next(a for a in held if a["kind"] == "zero_shot")
    assert [r["id"] for r in zero["rows"]] == [r["id"] for r in rag["rows"]]


def test_an_interrupted_stage_measures_no_arm_twice(decided: Path, tmp_path: Path, monkeypatch) -> None:
    write_run(tmp_path)
    real, asked = arms.run_arm, []

    def stopping(**given):
        asked.append(given["arm"])
        if given["arm"].startswith("RAG") and asked.count(given["arm"]) == 1:
            raise ShoestringError("killed here")
        return real(**given)

    monkeypatch.setattr(arms, "run_arm", stopping)
    with pytest.raises(ShoestringError, match="killed here"):
        opened(tmp_path).execute(until="decide")
    assert not (tmp_path / "runs/bays/decide.json").exists()
    opened(tmp_path).execute(until="decide")
    assert [name.split()[0] for name in asked] == ["zero-shot", "nearest", "RAG", "RAG"]
    found = [read_json(folder / "runs/bays/decide.json")["result"]["arms"] for folder in (decided, tmp_path)]
    whole, resumed = ([row["output"] for arm in arms_ for row in arm["rows"]] for arms_ in found)
    assert whole == resumed
    lines = [e for e in read_jsonl(tmp_path / "runs/bays/ledger.jsonl") if e["stage"] == "decide"]
    assert [e["item"].split("/")[-1][:8] for e in lines] == ["zero-sho", "nearest-", "RAG-shoe", "decide"]


def test_a_document_that_changes_repeats_the_arm_that_reads_it_alone(decided: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(decided, folder)

    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (folder / "runs/bays/decide").iterdir()}

    before = written()
    with (folder / "docs/amber.md").open("a") as file:
        file.write("\n\nThe amber pump was painted.\n")
    opened(folder).execute(until="decide")
    assert [name[:3] for name, at in written().items() if at != before[name]] == ["RAG"]


def test_a_model_whose_arms_are_all_there_is_not_loaded(decided: Path, monkeypatch) -> None:
    run = opened(decided)
    (run.folder / "decide.json").unlink()

    def refuse(*args, **named):
        raise AssertionError("loaded")

    monkeypatch.setattr(deciding, "load_generator", refuse)
    run.execute(until="decide")
    assert len(read_json(run.folder / "decide.json")["result"]["arms"]) == 3


def test_a_fine_tune_with_passages_learns_to_read_them(decided: Path) -> None:
    """Facts from the documents and the form from the examples: what neither gives alone, on a real model."""
    run = opened(decided)
    verdict = run.execute()
    (tuned,) = [a for a in run.summary()["arms"] if a["kind"] == "finetune"]
    assert verdict.met and tuned["arm"] == "lora shoestring-1m+documents" and tuned["score"] > 0.8
    rung = run.folder / "rungs/shoestring-1m+documents"
    told = read_json(rung / "adapter/retrieval.json")
    assert (
        told["num_chunks"] == 2 and told["head"] == "Passages that may help:" and len(told["documents"]) == len(PLACES)
    )
    passages = read_jsonl(rung / "adapter/passages.jsonl")
    assert any("The amber pump is kept in bay" in p["text"] for p in passages)
    card = (rung / "adapter/README.md").read_text()
    assert "base_model: shoestring-1m\n" in card and "retrieval.json" in card
    assert read_json(rung / "adapter/shoestring.json")["model"] == "shoestring-1m"
    arm = read_json(rung / "eval.json")["result"]["arm"]
    assert arm["details"]["retrieval"]["recall"]["num_findable"] == arm["num_rows"]
    assert "Passages" not in arm["rows"][0]["prompt"]
    assert "shoestring-1m+documents" in run.write_report().read_text()


def test_rungs_by_train_passages(tmp_path: Path) -> None:
    base = "name: x\ntask: {kind: chat, bar: 0.5}\nmodels: [a/b, c/d]\ndata: {train: t.jsonl, documents: d}\n"
    assert rungs_of(parse_run_file(base)) == ["a/b", "a/b+documents", "c/d", "c/d+documents"]
    assert rungs_of(parse_run_file(base + "train: {passages: without}")) == ["a/b", "c/d"]
    assert rungs_of(parse_run_file(base + "train: {passages: with}")) == ["a/b+documents", "c/d+documents"]
    assert rungs_of(parse_run_file(base.replace(", documents: d", ""))) == ["a/b", "c/d"]
    assert (model_of("a/b+documents"), model_of("a/b")) == ("a/b", "a/b")
    with pytest.raises(ConfigError, match=r"passages.*without"):
        parse_run_file(base + "train: {passages: sometimes}")


def test_passages_that_fit_nowhere_are_refused_with_the_numbers(decided: Path, tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(path.read_text().replace("passages: with}", "passages: with, seq_len: 48}"))
    with pytest.raises(ModelError, match=r"not one passage fits .* retrieval\.chunk_tokens \(now 32\)"):
        opened(tmp_path).execute(until="plan")


def test_the_chosen_instruction_is_that_of_the_arms_after_it(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "run.yaml"
    arms_ = "[zero_shot, instruction, few_shot], instructions: [Say the bay.], written_instructions: 1"
    path.write_text(path.read_text().replace("[zero_shot, nearest, rag]", arms_))
    opened(tmp_path).execute(until="decide")
    zero, best, few = read_json(tmp_path / "runs/bays/decide.json")["result"]["arms"]
    assert (zero["kind"], best["kind"], few["kind"]) == ("zero_shot", "instruction", "few_shot")
    told = best["details"]
    assert {c["origin"] for c in told["instructions"]} >= {"derived", "decide.instructions"}
    assert told["num_rows_chosen_on"] == 40 and all("score" in c for c in told["instructions"])
    assert few["details"]["instruction"] == told["instruction"] in [c["text"] for c in told["instructions"]]


def test_an_instruction_chosen_that_was_measured_already_is_not_asked_again(tmp_path: Path, monkeypatch) -> None:
    write_run(tmp_path)
    path = tmp_path / "run.yaml"
    own = "task: {instruction: Say the bay., "
    text = path.read_text().replace("[zero_shot, nearest, rag]", "[zero_shot, instruction]")
    path.write_text(text.replace("task: {", own))
    real, asked = arms.run_arm, []
    monkeypatch.setattr(arms, "run_arm", lambda **given: asked.append(given["arm"]) or real(**given))
    opened(tmp_path).execute(until="decide")
    zero, best = read_json(tmp_path / "runs/bays/decide.json")["result"]["arms"]
    # No answer of the untrained model is right, so the first candidate, the task's own, is the best.
    assert asked == ["zero-shot shoestring-1m"] and best["details"]["instruction"] == "Say the bay."
    assert (best["kind"], best["rows"], best["details"]["style"]) == ("instruction", zero["rows"], "instruction")


def test_passages_are_also_found_by_a_sentence_model(tmp_path: Path) -> None:
    make_model(tmp_path / "encoder")
    write_run(tmp_path)
    path = tmp_path / "run.yaml"
    text = path.read_text().replace("[zero_shot, nearest, rag]", "[nearest, rag]")
    path.write_text(text.replace("num_chunks: 2", "num_chunks: 2, embeddings: encoder"))
    opened(tmp_path).execute(until="decide")
    near, rag = read_json(tmp_path / "runs/bays/decide.json")["result"]["arms"]
    assert rag["details"]["retrieval"]["by"] == "BM25 and embeddings, fused by rank"
    assert rag["details"]["retrieval"]["mean_chunks"] == near["details"]["mean_shots"] == 2


def test_documents_are_those_of_the_run_that_asks(decided: Path, tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "docs/amber.md").write_text("Nothing is here.")
    one, other = retrieving.library(opened(decided)), retrieving.library(opened(tmp_path))
    assert any("amber pump" in p.text for p in one.passages) and not any("amber pump" in p.text for p in other.passages)
    assert json.dumps(retrieving.documents_print(opened(decided)))


def test_every_client_of_an_endpoint_keeps_its_pace(tmp_path: Path) -> None:
    prices = {"usd_per_million_input_tokens": 0, "usd_per_million_output_tokens": 0}
    endpoint = EndpointConfig(
        name="e", base_url="http://127.0.0.1:9/v1", model="m", api_key_env="", max_requests_per_min=300, **prices
    )
    assert Client(endpoint, AnswerFile(tmp_path / "answers.jsonl"), 8).pace.gap_s == 0.2
    with pytest.raises(ValueError, match="max_requests_per_min"):
        EndpointConfig(name="e", base_url="http://x/v1", model="m", max_requests_per_min=0, **prices)
