"""`shoestring import openai`: a recorded job and its files to a run file that plan and run accept; what goes wrong."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from shoestring.cli.main import run as cli
from shoestring.config import load_run_file
from shoestring.imports.counterparts import LARGEST_LOSS, SCORES_CSV, counterpart, scores
from shoestring.imports.openai_job import read_job
from shoestring.imports.openai_tuning import carried, check, closing, paid
from shoestring.plan.shapes import table_name
from tests.loopback import LoopbackServer, QuietHandler

KEY = "planted-openai-key-0123456789"
LABELS = {"refund": "billing", "invoice": "billing", "order": "sales", "crash": "tech", "login": "tech"}
WORDS = "amber birch cedar delta ember frost grove heron iris jade kelp lotus maple".split()  # noqa: SIM905
HYPER = {"n_epochs": 3, "batch_size": 20, "learning_rate_multiplier": 1.8}


def ticket(number: int, rng: random.Random) -> dict[str, Any]:
    word = rng.choice(list(LABELS))
    text = f"Ticket {number}: {' '.join(rng.sample(WORDS, 4))} about a {word}"
    said = [
        {"role": "system", "content": "Route the ticket."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": LABELS[word], "weight": 1},
    ]
    return {"messages": said}


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def record(**changed: Any) -> dict[str, Any]:
    """A job as GET /v1/fine_tuning/jobs/ftjob-abc123 answers: 300 rows of 40 tokens, three times."""
    return {
        "object": "fine_tuning.job", "id": "ftjob-abc123", "model": "gpt-4o-mini-2024-07-18", "created_at": 1760000000,
        "finished_at": 1760003600, "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:tickets:9xyz",
        "organization_id": "org-1", "result_files": ["file-results"], "status": "succeeded", "error": None,
        "validation_file": "file-validation", "training_file": "file-train", "hyperparameters": HYPER, "seed": 7,
        "trained_tokens": 36_000, "method": {"type": "supervised", "supervised": {"hyperparameters": HYPER}}, **changed,
    }  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """job.json, train.jsonl and validation.jsonl in the working folder."""
    rng = random.Random(0)
    (tmp_path / "train.jsonl").write_text(lines([ticket(i, rng) for i in range(300)]))
    (tmp_path / "validation.jsonl").write_text(lines([ticket(i, rng) for i in range(1000, 1060)]))
    (tmp_path / "job.json").write_text(json.dumps(record()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


GIVEN = ["--job-file", "job.json", "--train", "train.jsonl"]


def imported(capfd: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    assert cli(["import", "openai", *words, "--json"]) == status
    answer: dict[str, Any] = json.loads(capfd.readouterr().out)
    return answer


def refused(capfd: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    return str(imported(capfd, *words, status=status)["error"]["message"])


# ---- what is carried over -------------------------------------------------------------------


def test_hyperparameters_by_hand(files: Path) -> None:
    """36,000 trained tokens over 3 epochs of 300 rows are 40 a row; 20 rows are 800 tokens. 0.108 USD at 3.00."""
    job = read_job(record(), "job.json")
    assert (job.model, job.suffix, job.method, job.batch_rows) == ("gpt-4o-mini", "tickets", "supervised", 20)
    known = {one.theirs: one for one in carried(job, check(job, files / "train.jsonl", None))}
    assert (known["n_epochs"].key, known["n_epochs"].ours) == ("train.num_epochs", 3)
    assert (known["batch_size"].key, known["batch_size"].ours) == ("train.batch_tokens", 800)
    assert (
        known["learning_rate_multiplier"].key == "" and "does not publish" in known["learning_rate_multiplier"].reason
    )
    assert known["seed"].ours == 7 and known["suffix"].ours == "tickets"
    bill = paid(job)
    assert bill.usd == pytest.approx(36_000 * 3.00 / 1e6) and "2026-05-31" in bill.source
    unknown = paid(read_job(record(model="gpt-4.1-mini-2025-04-14"), "x"))
    assert unknown.usd is None and "no dated source" in unknown.source


def test_auto_and_small_batches_are_left_to_derivation(files: Path) -> None:
    auto = read_job(record(method=None, hyperparameters={"n_epochs": "auto", "batch_size": 1}), "x")
    assert auto.num_epochs is None
    one = read_job(record(method=None, hyperparameters={**HYPER, "batch_size": 1}), "x")
    (batch,) = [c for c in carried(one, check(one, files / "train.jsonl", None)) if c.theirs == "batch_size"]
    assert batch.key == "" and "1 row of 40 tokens" in batch.reason and "below the 512" in batch.reason


def test_the_open_model_is_the_smallest_that_scores_as_well() -> None:
    """gpt-4o-mini: 84.2 - 81.5, 62.0 - 40.2, 63.0 - 41.3, 83.4 - 80.4, in the mean 12.3."""
    chosen = counterpart("gpt-4o-mini")
    assert chosen.model == "Qwen/Qwen3-4B-Instruct-2507" and "+12.3 points" in chosen.reason
    assert chosen.licence.startswith("Apache-2.0") and chosen.larger == "Qwen/Qwen3-14B"
    nano = counterpart("gpt-4.1-nano")
    assert all(mine > theirs for theirs, mine in nano.compared.values())
    unknown = counterpart("gpt-4.1")
    assert unknown.compared == {} and unknown.reason.startswith("not compared with gpt-4.1: no published scores")
    assert "do not know this model" in counterpart("o9").reason


def test_the_score_table_holds() -> None:
    """Every row has a number, a day and a source; open models are in the size table; nothing chosen loses much."""
    with SCORES_CSV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["model"], row["benchmark"]) for row in rows}) == len(rows)
    for row in rows:
        assert (
            0 < float(row["score"]) < 100 and date.fromisoformat(row["as_of"]) <= date(2026, 11, 28) and row["source"]
        )
        assert "/" not in row["model"] or table_name(row["model"])
    for model in scores():
        compared = counterpart(model).compared if "/" not in model else {}
        assert all(mine >= theirs - LARGEST_LOSS for theirs, mine in compared.values())


def test_closing_dates() -> None:
    assert "OpenAI ends fine-tuning on 2027-01-06" in closing(date(2026, 11, 28))
    assert "ended fine-tuning on 2027-01-06" in closing(date(2027, 1, 6)) and "2027-01-14" in closing(date(2027, 1, 6))


# ---- from files that are there --------------------------------------------------------------


def test_the_run_file_is_one_that_plan_and_run_accept(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = imported(capfd, *GIVEN, "--validation", "validation.jsonl", "--models", "shoestring-1m")
    path = files / "imported" / "tickets" / "run.yaml"
    assert Path(answer["run_file"]) == path.relative_to(files)
    config = load_run_file(path)
    assert (config.name, config.task.kind, config.seed) == ("tickets", "classify", 7)
    assert (config.data.train, config.data.eval) == (["train.jsonl"], ["validation.jsonl"])
    assert config.train.num_epochs == 3 and config.train.batch_tokens == 800
    assert answer["paid"]["usd"] == pytest.approx(0.108) and answer["predicted"]["usd"]["value"] > 0
    assert "2027-01-06" in answer["closing"] and "2027-01-06" in path.read_text()
    assert answer["chosen"]["model"] == "Qwen/Qwen3-4B-Instruct-2507" and answer["models"] == ["shoestring-1m"]
    path.write_text(path.read_text() + "decide: {arms: [linear]}\n")  # the rest of the file as it was written
    assert cli(["plan", str(path)]) == 0
    assert cli(["run", str(path)]) == 0
    assert "Chosen: TF-IDF + linear" in capfd.readouterr().out  # five words decide: nothing needs training


def test_without_models_a_real_one_is_planned(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(["import", "openai", *GIVEN, "--out", "here"]) == 0
    out = capfd.readouterr().out
    assert "paid there: $0.11 (36,000 trained tokens x $3.00 a million" in out
    assert "Qwen/Qwen3-4B-Instruct-2507 (Apache-2.0)" in out and "predicted, Qwen/Qwen3-4B-Instruct-2507 by" in out
    assert "learning_rate_multiplier  1.8" in out
    assert load_run_file(files / "here" / "run.yaml").models == ["Qwen/Qwen3-4B-Instruct-2507"]
    assert "exists; choose another folder" in refused(capfd, *GIVEN, "--out", "here")
    assert imported(capfd, *GIVEN, "--out", "here", "--force")


def test_the_tuned_model_can_be_asked_beside_the_new_one(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The commented lines, taken out of their comment, are a baseline of the run file."""
    path = Path(imported(capfd, *GIVEN)["run_file"])
    head, mark, rest = path.read_text().partition("# decide:\n")
    uncommented = "".join(line.removeprefix("# ") for line in (mark + rest).splitlines(keepends=True))
    path.write_text(head + uncommented)
    (endpoint,) = load_run_file(path).decide.endpoints
    assert endpoint.model == "ft:gpt-4o-mini-2024-07-18:acme:tickets:9xyz" and endpoint.name == "tuned-at-openai"


def test_preference_pairs(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Question {i} of {WORDS[i % 13]}"}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": f"Good answer {i}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"Bad answer {i}"}],
        }
        for i in range(60)
    ]
    (files / "train.jsonl").write_text(lines(rows))
    method = {"type": "dpo", "dpo": {"hyperparameters": {**HYPER, "beta": 0.2}}}
    job = record(method=method, hyperparameters={}, model="ft:gpt-4o-mini-2024-07-18:acme:base:1")
    (files / "job.json").write_text(json.dumps(job))
    answer = imported(capfd, *GIVEN)
    config = load_run_file(answer["run_file"])
    assert config.train.objective == "dpo" and config.train.dpo_beta == 0.2
    text = " ".join(Path(answer["run_file"]).read_text().replace("#", " ").split())
    assert "the job went on from ft:gpt-4o-mini-2024-07-18:acme:base:1: import and run that job first" in text
    (files / "train.jsonl").write_text(lines([ticket(i, random.Random(i)) for i in range(60)]))
    assert "the job was dpo, and no row has preferred_output" in refused(capfd, *GIVEN, "--force")


def test_weights_and_tools_are_read_and_images_are_named_by_line(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(1)
    rows = [ticket(i, rng) for i in range(60)]
    rows[3]["messages"][2]["weight"] = 0
    call = {"id": "c1", "type": "function", "function": {"name": "route", "arguments": '{"to": "tech"}'}}
    rows[5]["messages"][2] = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows[5]["tools"] = [{"type": "function", "function": {"name": "route", "parameters": {"type": "object"}}}]
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    rows[7]["messages"][1]["content"] = [{"type": "text", "text": "What is it?"}, image]
    (files / "train.jsonl").write_text(lines(rows))
    answer = imported(capfd, *GIVEN)
    left_out = {fault["code"]: fault["lines"] for fault in answer["left_out"]}
    assert left_out == {"no_assistant": ["train.jsonl:4"], "not_text": ["train.jsonl:8"]}
    assert answer["rows"]["examples"] == 58
    for row in rows:
        row["messages"][1]["content"] = [image]
    (files / "train.jsonl").write_text(lines(rows))
    assert "hold images or audio (train.jsonl:1, train.jsonl:2" in refused(capfd, *GIVEN, "--force")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"status": "running", "trained_tokens": None}, "ftjob-abc123 is running: its result and its billed tokens"),
        ({"method": {"type": "reinforcement"}}, "its rows hold no answers, a grader scored"),
        ({"method": {"type": "orpo"}}, "method 'orpo' is not known"),
        ({"model": 3}, "this is no fine_tuning.job record"),
    ],
)
def test_jobs_that_cannot_be_imported(
    files: Path, capfd: pytest.CaptureFixture[str], changed: dict[str, Any], message: str
) -> None:
    (files / "job.json").write_text(json.dumps(record(**changed)))
    assert message in refused(capfd, *GIVEN)


def test_wrong_words_are_refused_with_the_next_step(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "one of the two" in refused(capfd)
    assert "one of the two" in refused(capfd, "--job", "ftjob-1", *GIVEN)
    assert "give it with --train FILE" in refused(capfd, "--job-file", "job.json")
    assert "nothing.jsonl: no such file" in refused(capfd, "--job-file", "job.json", "--train", "nothing.jsonl")
    (files / "job.json").write_text("<html>")
    assert "job.json is not the JSON of a job" in refused(capfd, *GIVEN)
    (files / "job.json").write_text(json.dumps(record()))
    (files / "train.jsonl").write_text(lines([ticket(i, random.Random(i)) for i in range(30)]))
    assert "30 rows can be learned from, at least 40 are needed" in refused(capfd, *GIVEN)
    assert "OPENAI_API_KEY is not set" in refused(capfd, "--job", "ftjob-abc123")


# ---- through the SDK ------------------------------------------------------------------------


class Api(LoopbackServer):
    """OpenAI's API as far as an import asks it; `broken` says what goes wrong, by path."""

    def __init__(self, folder: Path) -> None:
        self.job, self.broken = record(), dict[str, tuple[int, str, str]]()
        self.asked: list[str] = []
        api = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path.removeprefix("/v1")
                api.asked.append(path)
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    return self.say(401, {"error": {"message": "Incorrect API key provided", "type": "invalid"}})
                if path in api.broken:
                    status, kind, text = api.broken[path]
                    if status in (429, 500):  # the SDK tries again by itself
                        del api.broken[path]
                    return self.answer(status, {"Content-Type": kind, "Retry-After": "0"}, text.encode())
                if path == f"/fine_tuning/jobs/{api.job['id']}":
                    return self.say(200, api.job)
                if path == f"/fine_tuning/jobs/{api.job['id']}/events":
                    event = {
                        "object": "fine_tuning.job.event",
                        "id": "e1",
                        "created_at": 1,
                        "level": "info",
                        "message": "x",
                    }
                    return self.say(200, {"object": "list", "data": [event], "has_more": False})
                if path.startswith("/files/file-") and path.endswith("/content"):
                    name = path.split("/")[2].removeprefix("file-")
                    content = (folder / f"{name}.jsonl").read_bytes()
                    return self.answer(200, {"Content-Type": "application/octet-stream"}, content)
                return self.say(404, {"error": {"message": f"No such object: {path}", "type": "invalid_request_error"}})

            def say(self, status: int, body: Any) -> None:
                self.answer(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

        self.serve(Handler)


@pytest.fixture
def api(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    pytest.importorskip("openai")
    server = Api(files)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield server
    server.close()


def test_a_job_is_fetched_through_the_sdk(api: Api, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Record, events, both files; a busy answer is asked again; the key is in nothing that was written."""
    api.broken["/files/file-train/content"] = (429, "application/json", "{}")
    answer = imported(capfd, "--job", "ftjob-abc123")
    folder = files / "imported" / "ftjob-abc123"
    assert {p.name for p in folder.iterdir()} == {
        "job.json",
        "events.json",
        "train.jsonl",
        "validation.jsonl",
        "run.yaml",
    }
    assert (folder / "train.jsonl").read_bytes() == (files / "train.jsonl").read_bytes()
    assert json.loads((folder / "job.json").read_text())["trained_tokens"] == 36_000
    assert answer["paid"]["usd"] == pytest.approx(0.108)
    assert yaml.safe_load((folder / "run.yaml").read_text())["data"]["eval"] == "validation.jsonl"
    assert not [p for p in files.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    num_asked = len(api.asked)
    assert imported(capfd, "--job", "ftjob-abc123", "--force")
    assert not [path for path in api.asked[num_asked:] if path.startswith("/files/")]  # files there are kept


def test_another_job_in_the_same_folder_has_its_own_rows(
    api: Api, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = ("--out", str(files / "one"), "--force")
    assert imported(capfd, "--job", "ftjob-abc123", *place)
    other = (files / "train.jsonl").read_text().splitlines(keepends=True)[::-1]
    (files / "other.jsonl").write_text("".join(other))
    api.job = {**api.job, "id": "ftjob-xyz9", "training_file": "file-other"}
    api.broken["/files/file-other/content"] = (404, "application/json", "{}")
    assert refused(capfd, "--job", "ftjob-xyz9", *place)  # cut short: the old rows are there still
    del api.broken["/files/file-other/content"]
    assert imported(capfd, "--job", "ftjob-xyz9", *place)
    assert (files / "one" / "train.jsonl").read_text() == "".join(other)
    assert json.loads((files / "one" / "job.json").read_text())["id"] == "ftjob-xyz9"


@pytest.mark.parametrize(
    ("path", "broken", "status", "message"),
    [
        ("/fine_tuning/jobs/ftjob-abc123", (404, "application/json", '{"error": {}}'), 2, "of another organisation"),
        ("/fine_tuning/jobs/ftjob-abc123", (403, "application/json", '{"error": {}}'), 2, "may not read it (403)"),
        ("/fine_tuning/jobs/ftjob-abc123", (200, "text/html", "<html>"), 1, "a web page came instead"),
        ("/files/file-train/content", (404, "application/json", '{"error": {}}'), 2, "file-train is no longer there"),
        ("/files/file-train/content", (200, "text/html", "<html>sign in"), 1, "a web page came instead"),
        ("/files/file-train/content", (200, "text/plain", ""), 2, "the file is empty"),
    ],
)
def test_what_the_api_may_answer(
    api: Api, capfd: pytest.CaptureFixture[str], path: str, broken: tuple[int, str, str], status: int, message: str
) -> None:
    api.broken[path] = broken
    assert message in refused(capfd, "--job", "ftjob-abc123", status=status)


def test_keys_and_ids_that_are_wrong(
    api: Api, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "a job's id begins with ftjob-" in refused(capfd, "--job", "gpt-4o-mini")
    assert "OpenAI knows no job ftjob-other for this key" in refused(capfd, "--job", "ftjob-other")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-0123456789")
    said = refused(capfd, "--job", "ftjob-abc123")
    assert "not accepted (401)" in said and os.environ["OPENAI_API_KEY"] not in said
    api.job = record(status="running", trained_tokens=None)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert "ftjob-abc123 is running" in refused(capfd, "--job", "ftjob-abc123")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert "http://127.0.0.1:9/v1 cannot be reached" in refused(capfd, "--job", "ftjob-abc123", status=1)
