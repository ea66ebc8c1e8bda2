"""The fine-tuning API: files in and out, requests read, jobs through the official SDK. Runs are in test_tuning_runs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from openai import OpenAI

from shoestring.errors import BadInput, ConfigError
from shoestring.serve.gateway.errors import ApiError
from shoestring.serve.gateway.limits import read_limits
from shoestring.serve.gateway.tuning_settings import TuningSettings
from shoestring.serve.tuning.asked import read_request
from shoestring.serve.tuning.jobs import Jobs, TuningJob
from shoestring.serve.tuning.names import Served, map_lines, trained_for
from shoestring.serve.tuning.service import Tuning
from shoestring.serve.tuning.store import Files, LineCheck, is_id, new_id
from tests.tuning_server import KEYS, app_of

LABELS = {"refund": "billing", "invoice": "billing", "order": "sales", "crash": "tech", "login": "tech"}
WORDS = "amber birch cedar delta ember frost grove heron iris jade kelp lotus maple".split()  # noqa: SIM905


def ticket(number: int, rng: random.Random) -> dict[str, Any]:
    word = rng.choice(list(LABELS))
    text = f"Ticket {number}: {' '.join(rng.sample(WORDS, 4))} about a {word}"
    return {
        "messages": [
            {"role": "system", "content": "Route the ticket."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": LABELS[word]},
        ]
    }


def tickets(num: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return "".join(json.dumps(ticket(i, rng)) + "\n" for i in range(num)).encode()


clients: list[OpenAI] = []


@contextlib.contextmanager
def served(runs_dir: Path, settings: TuningSettings | None = None) -> Iterator[str]:
    """The API alone, on a port of its own, in a thread of this process; its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = app_of(Tuning(runs_dir, settings or TuningSettings()))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        close_clients()
        server.should_exit = True
        thread.join()


def client(url: str, key: str = "ann") -> OpenAI:
    """A client, open until the server it asks ends (close_clients): its socket is not left to the collector."""
    clients.append(OpenAI(base_url=url, api_key=KEYS[key], max_retries=0))
    return clients[-1]


def close_clients() -> None:
    while clients:
        clients.pop().close()


# ---- files ----------------------------------------------------------------------------------


def test_a_file_goes_in_and_comes_out_the_same(tmp_path: Path) -> None:
    data = tickets(3)
    with served(tmp_path) as url:
        ann = client(url)
        made = ann.files.create(file=("tickets.jsonl", data), purpose="fine-tune")
        assert (made.bytes, made.filename, made.purpose, made.object) == (
            len(data),
            "tickets.jsonl",
            "fine-tune",
            "file",
        )
        assert is_id("file-", made.id)
        assert ann.files.retrieve(made.id) == made
        assert ann.files.content(made.id).content == data
        assert [f.id for f in ann.files.list()] == [made.id]
        assert ann.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            ann.files.retrieve(made.id)
    assert not list((tmp_path / ".serving" / "files").iterdir())


def test_files_are_private_and_listed_in_pages(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        ann, bob, root = (client(url, key) for key in ("ann", "bob", "root"))
        made = [ann.files.create(file=(f"{i}.jsonl", tickets(1, i)), purpose="fine-tune").id for i in range(3)]
        for limit in ("0", "-1", "\N{SUPERSCRIPT TWO}", "9" * 5000, "1e1"):
            with pytest.raises(openai.BadRequestError, match="no whole number from 1 to 10,000"):
                ann.files.list(extra_query={"limit": limit})
        assert [f.id for f in ann.files.list(limit=2)] == sorted(made, key=made.index, reverse=True)
        assert {f.id for f in ann.files.list(order="asc", after=made[0])} <= set(made[1:])
        assert not bob.files.list().data and len(root.files.list().data) == 3
        for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(made[0])
        stored = tmp_path / ".serving"
        for path in [stored, *stored.rglob("*")]:
            assert not path.stat().st_mode & 0o077, path
    with served(tmp_path) as url:
        assert {f.id for f in client(url).files.list()} == set(made)


ESCAPES = (
    *("..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e", "file-../../../x", "/etc/passwd", "file-"),
    *("file-" + "a" * 25, "file-" + "a" * 23 + "/", "file-aaaa%00aaaa", "....//....//", "~root", "C:\\x", "file-*"),
)


def status_of(url: str, path: str) -> int:
    """Of a GET whose path goes out as it stands."""
    with contextlib.closing(http.client.HTTPConnection(url.split("/")[2])) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEYS['ann']}"})
        return connection.getresponse().status


def test_ids_and_names_reach_no_path(tmp_path: Path) -> None:
    """What a client calls a file, or asks for, is a word: nothing outside is read, and nothing is made outside."""
    made = []
    with served(tmp_path / "runs") as url:
        ann = client(url)
        for name in ESCAPES:
            for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/fine_tuning/jobs/{name}/events"):
                assert status_of(url, path) in (404, 405, 307), path
            with pytest.raises(openai.NotFoundError):
                ann.fine_tuning.jobs.create(model="shoestring-1m", training_file=name)
            file = ann.files.create(file=(f"{name}.jsonl", tickets(1)), purpose="fine-tune")
            assert "/" not in file.filename and file.filename.endswith(".jsonl")
            made.append(file.id)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]
    assert sorted(p.name for p in (tmp_path / "runs" / ".serving" / "files").iterdir()) == sorted(made)


def test_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        ann = client(url)
        bad = b'{"a": 1}\n[1]\n\n{"b": \n{"c": 2}'
        with pytest.raises(
            openai.BadRequestError, match="line 2: a JSON list, and no object; line 4: Expecting"
        ) as said:
            ann.files.create(file=("bad.jsonl", bad), purpose="fine-tune")
        assert said.value.param == "file" and said.value.code == "invalid_file_format"
        for name, data, purpose, match in (
            ("x.csv", b"a,b", "fine-tune", "named .jsonl"),
            ("x.jsonl", b"\n\n", "fine-tune", "holds no row"),
            ("x.jsonl", b"{}", "assistants", "'fine-tune' alone"),
        ):
            with pytest.raises(openai.BadRequestError, match=match):
                ann.files.create(file=(name, data), purpose=purpose)  # type: ignore[arg-type]
        assert not ann.files.list().data
    assert not list((tmp_path / ".serving" / "files").iterdir())


def test_line_check_does_not_depend_on_how_bytes_come() -> None:
    data = tickets(20) + b'{"no": \n' + tickets(3)
    for size in (1, 7, 100, len(data)):
        check = LineCheck()
        for start in range(0, len(data), size):
            check.feed(data[start : start + size])
        with pytest.raises(ApiError, match="line 21: "):
            check.end("x.jsonl")
        assert check.num_rows == 23


def test_uploads_are_bounded(tmp_path: Path) -> None:
    settings = TuningSettings(max_file_mb=1, max_stored_mb=2)
    row = json.dumps({"prompt": "x" * 1000, "completion": "y"}).encode() + b"\n"
    with served(tmp_path, settings) as url:
        ann = client(url)
        with pytest.raises(openai.APIStatusError) as said:
            ann.files.create(file=("large.jsonl", row * 1200), purpose="fine-tune")
        assert said.value.status_code == 413 and "max_file_mb" in str(said.value)
        for _ in range(2):
            ann.files.create(file=("x.jsonl", row * 900), purpose="fine-tune")
        with pytest.raises(openai.APIStatusError) as said:
            ann.files.create(file=("x.jsonl", row * 900), purpose="fine-tune")
        assert said.value.status_code == 413 and "max_stored_mb" in str(said.value)
        assert len(ann.files.list().data) == 2
    assert len(list((tmp_path / ".serving" / "files").iterdir())) == 2


def test_an_upload_cut_short_leaves_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        host, port = url.split("/")[2].split(":")
        body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n' + tickets(2)
        head = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEYS['ann']}\r\n"
        head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as one:
            one.sendall(head.encode() + body)
            told = b""
            while b"broke off" not in told:
                part = one.recv(10_000)
                assert part, told
                told += part
        with socket.create_connection((host, int(port))) as other:
            other.sendall(head.replace(str(len(body)), str(len(body) + 500)).encode() + body)
        assert not client(url).files.list().data
    assert not list((tmp_path / ".serving" / "files").iterdir())


def test_broken_uploads_are_refused_not_failed(tmp_path: Path) -> None:
    """Bytes of a request changed, cut and doubled at random: an answer of the API each time, and nothing left."""
    rng = random.Random(0)
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n'
    whole = head + tickets(1) + b"\r\n--b--\r\n"
    answered = set()
    with served(tmp_path) as url, contextlib.closing(http.client.HTTPConnection(url.split("/")[2])) as connection:
        for number in range(70):
            body = bytearray(whole)
            for _ in range(number % 4):
                at, how = rng.randrange(len(body)), rng.randrange(3)
                body[at : at + (how == 1) * 9] = bytes([rng.randrange(256)]) if how else body[at : at + 40]
            kind = f"multipart/form-data; boundary={'b' if number % 7 else rng.choice(['x', '', 'b' * 300, 'b;b'])}"
            headers = {"Authorization": f"Bearer {KEYS['ann']}", "Content-Type": kind}
            connection.request("POST", "/v1/files", body=bytes(body), headers=headers)
            response = connection.getresponse()
            told = json.loads(response.read())
            answered.add(response.status)
            assert response.status == 200 or "message" in told["error"], told
        kept = len(client(url).files.list().data)
    assert answered == {200, 400} and len(list((tmp_path / ".serving" / "files").iterdir())) == kept


def test_a_file_expires(tmp_path: Path) -> None:
    files = Files(tmp_path, max_file_mb=1, max_stored_mb=1)
    record = files.put(new_id("file-"), "ann", "x.jsonl", "fine-tune", b"{}")
    assert files.of(lambda owner: True) == [record]
    gone = type(record)(**{**{f: getattr(record, f) for f in record.__slots__}, "expires_at": 1})
    files.known[record.id] = gone
    assert files.of(lambda owner: True) == [] and not list(tmp_path.iterdir())


# ---- requests -------------------------------------------------------------------------------

RIGHT = {"model": "shoestring-1m", "training_file": "file-x"}


def test_a_request_by_hand() -> None:
    asked = read_request({**RIGHT, "suffix": "My Tickets.v2", "seed": 7, "hyperparameters": {"n_epochs": 3}})
    assert (asked.suffix, asked.seed, asked.method) == ("my-tickets-v2", 7, "supervised")
    assert asked.hyperparameters == {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    dpo = read_request({**RIGHT, "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}})
    assert dpo.method == "dpo" and dpo.hyperparameters["beta"] == 0.2 and len(dpo.hyperparameters) == 4


@pytest.mark.parametrize(
    ("changed", "param", "match"),
    [
        ({"model": None}, "model", "required"),
        ({"training_file": 3}, "training_file", "required"),
        ({"n_epochs": 3}, "n_epochs", "Unrecognized"),
        ({"validation_file": "file-x"}, "validation_file", "held-out rows are others"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "trackers"),
        ({"suffix": "a" * 65}, "suffix", "64"),
        ({"suffix": "../x"}, "suffix", r"suffix '\.\./x': give at most 64 letters"),
        ({"suffix": "-- "}, "suffix", "no letter and no digit"),
        ({"seed": -1}, "seed", "seed -1: give a whole number"),
        ({"seed": True}, "seed", "whole number"),
        ({"metadata": {"a": 1}}, "metadata", "16 pairs"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "from 1 to 50"),
        ({"hyperparameters": {"n_epochs": 2.5}}, "hyperparameters.n_epochs", "whole number"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "no hyperparameter of supervised"),
        ({"method": {"type": "reinforcement"}}, "method.type", "grader"),
        ({"method": {"type": "rlhf"}}, "method.type", "none of"),
        ({"method": "dpo"}, "method.type", "none of"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "does not belong"),
        ({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}}, "hyperparameters", "give them once"),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(changed: dict[str, Any], param: str, match: str) -> None:
    with pytest.raises(ApiError, match=match) as said:
        read_request({**RIGHT, **changed})
    assert said.value.status == 400 and said.value.param == param


# ---- names ----------------------------------------------------------------------------------


def test_which_model_trains_for_a_name() -> None:
    """The owner's map, then the base served, then what is at hand, then the counterpart by published scores."""
    none = TuningSettings()
    assert trained_for("gpt-4o-mini-2024-07-18", none, None).model == "Qwen/Qwen3-4B-Instruct-2507"
    assert trained_for("gpt-4o-mini", none, None).name == "Qwen3-4B-Instruct-2507"
    base = Served("tiny", "/models/tiny")
    assert trained_for("gpt-4o-mini", none, base).model == "/models/tiny"
    assert trained_for("tiny", none, base).name == "tiny"
    mine = TuningSettings(models={"gpt-4o-mini": "shoestring-3m", "house": "shoestring-1m"})
    assert trained_for("gpt-4o-mini-2024-07-18", mine, base).model == "shoestring-3m"
    assert trained_for("house", mine, None).model == "shoestring-1m"
    for unknown in ("gpt-9", "../x", "/etc", "Qwen/../x", "runs/tickets", "ft:x", "."):
        with pytest.raises(ApiError, match="cannot be tuned here") as said:
            trained_for(unknown, none, base)
        assert said.value.status == 404 and said.value.code == "model_not_found"
    assert {"gpt-4o-mini", "gpt-4.1", "shoestring-1m"} <= {name for name, _, _ in map_lines(none, None)}


def test_a_job_on_a_base_held_in_nf4_trains_on_it_so(tmp_path: Path) -> None:
    """An adapter is served on what it was trained on alone; another model than the served one is left to the plan."""
    base = Served("tiny", "/models/tiny", on_nf4=True)
    tuning = Tuning(tmp_path, TuningSettings(), base)
    assert tuning._method_of_run(trained_for("gpt-4o", TuningSettings(), base)) == "qlora"
    assert tuning._method_of_run(trained_for("shoestring-1m", TuningSettings(), base)) == "auto"
    tuning.lock.release()


def test_settings_are_read_or_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        "tuning:\n  budget_usd: 5\n  models: {gpt-4o-mini: shoestring-1m}\n  run: {train: {lora_rank: 8}}\n"
    )
    settings = read_limits(file).tuning
    assert settings.budget_usd == 5 and settings.models == {"gpt-4o-mini": "shoestring-1m"}
    for text, match in (
        ("budget: 5", "server.yaml:2: tuning.budget: no such key; allowed here: organisation, budget_usd"),
        ("max_jobs: 3\n  budget_usd: much", "server.yaml:3: tuning.budget_usd"),
        ("run: {name: x}", "run.name is decided by each job"),
        ("run: {train: {lora_rang: 8}}", r"server.yaml:2: tuning.run: unknown key 'train.lora_rang'"),
        ("models: [a]", "server.yaml:2: tuning.models"),
    ):
        file.write_text(f"tuning:\n  {text}\n")
        with pytest.raises(ConfigError, match=match):
            read_limits(file)


# ---- a job's record -------------------------------------------------------------------------


def a_job(**changed: Any) -> TuningJob:
    values = {
        "id": "ftjob-" + "A" * 24, "number": 1, "owner": "ann", "created_at": 1, "model": "shoestring-1m",
        "asked_model": "gpt-4o-mini", "run_model": "shoestring-1m", "start": "", "training_file": "file-x",
        "validation_file": None, "suffix": "tickets", "seed": 1, "method": "supervised", "hyperparameters": {},
        "metadata": None, "organisation": "acme",
    }  # fmt: skip
    return TuningJob(**{**values, **changed})


def test_names_of_run_and_model() -> None:
    job = a_job()
    assert job.run_name == "tickets-AAAAAAAA"
    assert job.tuned_name == "ft:shoestring-1m:acme:tickets:AAAAAAAA"
    assert a_job(suffix="").tuned_name == "ft:shoestring-1m:acme::AAAAAAAA"


def test_one_server_carries_jobs_out(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        with pytest.raises(BadInput, match="another server"):
            Tuning(tmp_path, TuningSettings())
        with pytest.raises(openai.BadRequestError, match="every key of this server"):
            client(url).fine_tuning.checkpoints.permissions.list("ft:x:y:z:1:ckpt-step-2")
        with pytest.raises(openai.NotFoundError, match="no job of yours"):
            client(url).models.delete("ft:x:y:z:1")


def test_a_name_that_no_model_can_have_is_refused_before_training(tmp_path: Path) -> None:
    settings = TuningSettings(organisation="o" * 32, models={"gpt-4o-mini": f"/models/{'m' * 60}"})
    with served(tmp_path, settings) as url:
        ann = client(url)
        file = ann.files.create(file=("tickets.jsonl", tickets(12)), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError, match="128 at most; give a shorter suffix"):
            ann.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id, suffix="s" * 40)
        assert not ann.fine_tuning.jobs.list().data


def test_a_torn_event_is_closed_by_the_next(tmp_path: Path) -> None:
    jobs, job = Jobs(tmp_path), a_job()
    jobs.save(job)
    jobs.event(job, "one")
    with (tmp_path / job.id / "events.jsonl").open("a") as file:
        file.write('{"message": "tw')
    jobs.event(job, "three", level="warn", data={"a": 1})
    assert [event["message"] for event in jobs.events(job)] == ["one", "three"]
    assert Jobs(tmp_path).known == {job.id: job}
