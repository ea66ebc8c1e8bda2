"""Jobs at vendors, end to end: each vendor's own SDK against a loopback server of its documented shape."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoestring.config import parse_run_file
from shoestring.data.store import write_curated
from shoestring.errors import BadInput, BudgetStopped, ConfigError, DataError, LaunchError, MissingDependency
from shoestring.launch import register
from shoestring.launch.backend import Order
from shoestring.launch.managed import client
from shoestring.launch.managed.backend import PYTHON_ENV, Managed, python_of
from shoestring.launch.managed.data import check_lengths, faults_of, row_of, tokens_of, write_rows
from shoestring.launch.managed.flow import Flow
from shoestring.launch.managed.journal import Journal, tag_of
from shoestring.launch.managed.vendors import VENDORS as VENDOR
from shoestring.launch.managed.wanted import address_of
from shoestring.launch.records import Launch
from shoestring.market.managed import TERMS
from shoestring.messages import Example, Message, ToolCall
from shoestring.records import Curated, to_json
from tests.managed_server import DOLLARS_PER_MILLION, REASON, ManagedServer

VENDORS = ("together", "fireworks", "nebius", "openai")
KEYS = {
    "TOGETHER_API_KEY": "tgp_planted_0123456789abcdef",
    "FIREWORKS_API_KEY": "fw_planted_0123456789abcdef",
    "NEBIUS_API_KEY": "v1.planted_0123456789abcdef",
    "OPENAI_API_KEY": "sk-planted_0123456789abcdef",
}
MODELS = {
    "together": "Qwen/Qwen3-8B",
    "fireworks": "accounts/fireworks/models/qwen3-8b",
    "nebius": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "openai": "gpt-4o-mini",
}
RUN_FILE = """\
name: tuned
task: {kind: classify, bar: 0.9}
data: {train: rows.jsonl}
models: [Qwen/Qwen3-8B]
train: {num_epochs: 2, learning_rate: 0.0002, lora_rank: 16, lora_alpha: 32}
budget_usd: 1.0
"""
LAUNCH_ID = "tuned-20261128T100000-a1b2c3"


def has_sdk(vendor: str) -> bool:
    if python_of({}):
        return True
    return importlib.util.find_spec({"nebius": "openai"}.get(vendor, vendor)) is not None


def needs_sdk(vendor: str) -> Any:
    why = f"the SDK of {vendor} is not here: `make environments` makes {sys.prefix}/vendors, or set {PYTHON_ENV}"
    return pytest.param(vendor, marks=pytest.mark.skipif(not has_sdk(vendor), reason=why))


each_vendor = pytest.mark.parametrize("vendor", [needs_sdk(name) for name in VENDORS])


def rows(count: int = 12) -> tuple[Example, ...]:
    """Conversations of a system turn, a question and its label."""
    return tuple(
        Example(
            messages=(
                Message("system", "Name the team."),
                Message("user", f"My invoice number {number} is wrong."),
                Message("assistant", "billing"),
            ),
            answer_span=(2, 3),
            source="rows.jsonl",
            line=number + 1,
            id=f"r{number}",
        )
        for number in range(count)
    )


def curated(train: tuple[Example, ...], dev: tuple[Example, ...] = ()) -> Curated:
    counts = {"rows_in": len(train), "rows_train": len(train), "rows_dev": 0, "rows_eval": 0, "dropped": 0}
    return Curated(train, dev, (), (), (), counts, None)


class Place:
    """A run folder with a launch at one vendor's loopback server; waits are kept, not slept."""

    def __init__(self, vendor: str, folder: Path, text: str = RUN_FILE, train: tuple[Example, ...] = ()) -> None:
        self.vendor, self.folder = vendor, folder
        self.server = ManagedServer(vendor)
        self.run_file = folder / "run.yaml"
        self.run_file.write_text(text, encoding="utf-8")
        self.run_folder = folder / "runs" / "tuned"
        write_curated(curated(train or rows()), self.run_folder / "data")
        self.waits: list[float] = []
        self.lines: list[str] = []
        self.managed = Managed(vendor, pause=self.waits.append)
        managed: dict[str, Any] = {"model": MODELS[vendor]}
        if vendor in ("nebius", "openai"):
            managed["usd_per_million_train_tokens"] = DOLLARS_PER_MILLION
        self.launch = Launch(
            id=LAUNCH_ID,
            backend=vendor,
            target=self.server.address,
            run_file=str(self.run_file),
            run_folder=str(self.run_folder),
            started_at="2026-11-28T10:00:00+00:00",
            basis="job",
            price_usd_per_hour=None,
            budget_usd=1.0,
            deadline_h=None,
            limit_s=None,
            options={"managed": managed},
        )

    def start(self) -> Launch:
        """The launch with its handle, as the launcher keeps it."""
        handle = self.managed.start(self.launch, self.lines.append)
        self.launch = dataclasses.replace(self.launch, handle=handle)
        return self.launch

    def follow(self) -> Any:
        """Its last status."""
        for _ in range(12):
            status = self.managed.status(self.launch)
            if status.state in ("done", "failed", "stopped", "lost"):
                return status
        raise AssertionError(status)

    @property
    def job(self) -> Any:
        (job,) = self.server.jobs.values()
        return job


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A register of this test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FIREWORKS_ACCOUNT_ID", "acct")
    return KEYS


@pytest.fixture
def place(vendor: str, tmp_path: Path, keys: dict[str, str]) -> Iterator[Place]:
    made = Place(vendor, tmp_path)
    yield made
    made.server.close()


# ---- the whole way --------------------------------------------------------------------------


@each_vendor
def test_upload_estimate_order_follow_and_bring(place: Place) -> None:
    """Rows of 14, 29 or 30, and 7 characters, 26 tokens, over two epochs, at half a dollar a million tokens."""
    place.start()
    (order,) = place.server.creates
    assert order["tag"] == tag_of(LAUNCH_ID)
    assert MODELS[place.vendor] in json.dumps(order["body"]) and 'epochs": 2' in json.dumps(order["body"])
    (file,) = place.server.files.values()
    lines = [json.loads(line) for line in file.content.decode().splitlines()]
    assert len(lines) == 12
    assert lines[0]["messages"][2] == {"role": "assistant", "content": "billing"}

    status = place.follow()
    assert status.state == "done", status
    cost_usd = 2 * 12 * 26 * DOLLARS_PER_MILLION / 1e6
    (expense,) = status.bill
    assert expense.actual_usd == pytest.approx(cost_usd, abs=1e-9)  # services count in billionths of a dollar
    assert expense.predicted_usd is not None and expense.predicted_usd.low <= cost_usd <= expense.predicted_usd.high
    if place.vendor == "together":  # by its own estimate, to the billionth
        assert expense.predicted_usd.value == pytest.approx(cost_usd, abs=1e-9)

    place.managed.fetch(place.launch, place.lines.append)
    folder = place.run_folder / "managed" / tag_of(LAUNCH_ID) / "result"
    record = json.loads((folder / "managed.json").read_text())
    assert record["sdk"] == place.managed.vendor.package.replace("==", " ").replace("-ai", "")  # the one written for
    (lines,) = [line for line in place.lines if "decide:" in line]
    (endpoint,) = parse_run_file(RUN_FILE + lines[lines.index("decide:") :]).decide.endpoints
    assert tag_of(LAUNCH_ID) in endpoint.model and endpoint.api_key_env == place.managed.vendor.key_env
    if place.vendor == "openai":
        assert record["kind"] == "served" and not record["files"]
    else:
        for name, content in place.server.weights.items():
            assert (folder / "adapter" / name).read_bytes() == content
            assert record["files"][name] == hashlib.sha256(content).hexdigest()
    requests = len(place.server.requests)
    place.managed.fetch(place.launch, place.lines.append)  # it is here: nothing is fetched twice
    assert [path for _, path, _ in place.server.requests[requests:] if "download" in path.lower()] == []


@each_vendor
def test_a_job_is_cancelled_and_bills_no_more(place: Place) -> None:
    place.start()
    (bill,) = listed(place)
    assert (bill.name, bill.launch_id) == (
        place.job.id,
        LAUNCH_ID,
    ) and bill.stop == f"shoestring launch {LAUNCH_ID} --stop"
    status = place.managed.stop(place.launch)
    assert status.state == "stopped" and listed(place) == []
    assert place.managed.stop(place.launch).state == "stopped"  # twice is no error
    assert len(place.server.creates) == 1


def listed(place: Place) -> list[Any]:
    """What bills at the loopback's address, which the register has from the launch."""
    register.save(place.launch)
    place.managed.vendor = dataclasses.replace(place.managed.vendor, base_url="")  # the service itself is not asked
    assert place.managed.is_configured()
    return place.managed.billing()


@each_vendor
def test_a_failed_job_says_why(place: Place) -> None:
    place.server.fails = True
    place.start()
    status = place.follow()
    assert status.state == "failed" and REASON in status.note
    place.managed.fetch(place.launch, place.lines.append)
    assert "there is nothing to bring" in place.lines[-1]
    assert len(place.server.creates) == 1


# ---- one order, whatever happens ------------------------------------------------------------

CREATE = {
    "together": r"/v1/fine-tunes$",
    "nebius": r"/v1/fine_tuning/jobs$",
    "openai": r"/v1/fine_tuning/jobs$",
    "fireworks": r"/supervisedFineTuningJobs$",
}


@each_vendor
def test_slow_down_is_obeyed(place: Place) -> None:
    """429 with Retry-After: nothing was made, so the order is given again after as long as was asked."""
    place.server.fault("POST", CREATE[place.vendor], "status", status=429, headers={"Retry-After": "7"})
    place.start()
    assert len(place.server.creates) == 1 and 7 <= max(place.waits) < 8


@each_vendor
@pytest.mark.parametrize("kind", ["drop", "lose"])
def test_a_dropped_connection_orders_once(place: Place, kind: str) -> None:
    """drop: the order was not heard; lose: it was carried out and the answer lost."""
    place.server.fault("POST", CREATE[place.vendor], kind)
    place.start()
    assert len(place.server.creates) == 1
    assert place.follow().state == "done"


@each_vendor
def test_a_slow_server_orders_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the order and says nothing until the client gives up."""
    monkeypatch.setattr(client, "TIMEOUT_S", 0.5)
    place.server.fault("POST", CREATE[place.vendor], "hang")
    place.start()
    assert len(place.server.creates) == 1 and any("answer to the order was lost" in line for line in place.lines)


@each_vendor
def test_a_dropped_upload_is_sent_again(place: Place) -> None:
    """The first request of the upload is dropped, then the one that carries the bytes."""
    place.server.fault("POST", "/v1/files$|datasets$", "drop")
    place.server.fault("PUT", "/put/", "drop")
    place.server.fault("POST", ":upload$", "drop")
    place.start()
    whole = [file for file in place.server.files.values() if file.content]
    assert len(whole) == 1 and len(place.server.creates) == 1


@each_vendor
def test_following_goes_on_through_trouble(place: Place) -> None:
    """Slow down, a server error and a dropped connection while the job is followed; states are told."""
    place.start()
    for kind, more in (("status", {"status": 429}), ("status", {"status": 502}), ("drop", {})):
        place.server.fault("GET", f".*{place.job.id}$", kind, **more)
    lines = list(place.managed.logs(place.launch, follow=True))
    assert lines[-1].endswith(place.server.state(place.job)) and place.managed.status(place.launch).state == "done"
    assert place.vendor == "fireworks" or any("step 1 of" in line for line in lines)  # which has no events


@each_vendor
def test_a_server_error_after_the_order_orders_once(place: Place) -> None:
    place.server.fault("POST", CREATE[place.vendor], "lose")
    place.server.fault("POST", CREATE[place.vendor], "status", status=503)
    place.start()
    assert len(place.server.creates) == 1


@pytest.mark.parametrize("vendor", [needs_sdk("together")])
def test_the_list_may_lag_behind(place: Place) -> None:
    place.server.list_lags = 2
    place.server.fault("POST", CREATE[place.vendor], "lose")
    place.start()
    assert len(place.server.creates) == 1 and place.waits[-2:] == [5.0, 15.0]


@pytest.mark.parametrize("vendor", [needs_sdk("nebius")])
def test_a_second_job_made_all_the_same_is_cancelled(place: Place) -> None:
    """The list lags so long that the order is given again: the later of the two jobs is ended."""
    place.server.list_lags = 5
    place.server.fault("POST", CREATE[place.vendor], "lose")
    place.start()
    keys = {order["key"] for order in place.server.creates}
    assert len(place.server.creates) == 2 and keys == {tag_of(LAUNCH_ID)}  # a service that knows the key makes one
    place.managed.status(place.launch)
    states = [place.server.state(job) for job in place.server.jobs.values()]
    assert sorted(states) == ["cancelled", "queued"]


@each_vendor
def test_a_refused_order_is_told_and_not_repeated(place: Place) -> None:
    place.server.fault("POST", CREATE[place.vendor], "status", status=402)
    with pytest.raises(LaunchError, match=r"HTTP 402.*check the account's balance"):
        place.start()
    assert place.server.count("POST", ".*" + CREATE[place.vendor].rstrip("$")) == 1 and not place.server.creates
    place.start()  # once it is put right, the same command goes on
    assert len(place.server.creates) == 1


@each_vendor
def test_files_are_sent_once(place: Place) -> None:
    """Another launch of the same rows: the service has them."""
    place.start()
    size = len(place.server.files)
    again = dataclasses.replace(place.launch, id="tuned-later", handle={})
    place.managed.start(again, place.lines.append)
    assert len(place.server.files) == size == 1
    assert [order["tag"] for order in place.server.creates] == [tag_of(LAUNCH_ID), tag_of("tuned-later")]
    assert place.managed.status(again).state in ("pending", "running")


@each_vendor
def test_a_refused_file_orders_nothing(place: Place) -> None:
    place.server.refuses_file = "line 3: unknown role"
    with pytest.raises(DataError, match="line 3: unknown role"):
        place.start()
    assert not place.server.creates
    place.server.refuses_file = ""
    place.start()
    assert len(place.server.creates) == 1


@each_vendor
def test_an_order_that_may_be_there_is_not_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it ordered; then without a key, then with rows that would be refused: it is found all the same."""
    monkeypatch.setattr(Flow, "_is_ours", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        place.start()
    monkeypatch.undo()
    with monkeypatch.context() as bare:
        for name in KEYS:
            bare.delenv(name, raising=False)
        with pytest.raises(LaunchError, match="The job may be ordered already"):
            place.start()
    for name, value in {**KEYS, "FIREWORKS_ACCOUNT_ID": "acct"}.items():
        monkeypatch.setenv(name, value)
    write_curated(curated(rows(1)), place.run_folder / "data")
    place.start()
    assert len(place.server.creates) == 1 and place.follow().state == "done"


class Killed(BaseException):
    """As if the process were gone: nothing of ours may hold it up."""


@each_vendor
def test_cut_off_after_any_call_or_write_it_goes_on_and_orders_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is cut off after its first step, begun again and cut off after one more, until it comes through."""
    write, once = Journal.write, client.Client.once
    left = [0]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def write_and_stop(self: Journal, **changes: Any) -> None:
        write(self, **changes)
        step()

    def call_and_stop(self: client.Client, *arguments: Any, **more: Any) -> Any:
        answer = once(self, *arguments, **more)
        step()
        return answer

    monkeypatch.setattr(Journal, "write", write_and_stop)
    monkeypatch.setattr(client.Client, "once", call_and_stop)
    for num_steps in range(1, 40):
        left[0] = num_steps
        try:
            place.start()
            break
        except Killed:
            assert len(place.server.creates) <= 1
    assert num_steps >= 5 and len(place.server.creates) == 1
    assert len([file for file in place.server.files.values() if file.content]) == 1
    left[0] = 0
    assert place.follow().state == "done"


@each_vendor
def test_rows_that_changed_before_the_order_are_those_trained_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(Flow, "estimate", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            place.start()
    write_curated(curated(rows(13)), place.run_folder / "data")
    place.start()
    (order,) = place.server.creates
    named = str(order["body"].get("training_file") or order["body"]["dataset"]).rpartition("/")[2]
    assert len(place.server.files[named].content.splitlines()) == 13


KILLED = """
import os, signal, sys
from shoestring.launch.managed import backend, journal
from shoestring.launch.records import launch_from_json
import json

launch, killed_at = launch_from_json(json.loads(sys.argv[1])), int(sys.argv[2])
write, count = journal.Journal.write, 0

def write_and_die(self, **changes):
    global count
    write(self, **changes)
    count += 1
    if count == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.write = write_and_die
backend.Managed(launch.backend, pause=lambda wait_s: None).start(launch)
print(count)
"""


@pytest.mark.parametrize("vendor", [needs_sdk("nebius")])
def test_killed_after_any_step_it_goes_on_and_orders_once(place: Place) -> None:
    """SIGKILL of the client after each write of its journal in turn, then the same start again."""
    finished = False
    for killed_at in range(1, 12):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, json.dumps(to_json(place.launch)), str(killed_at)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent / "src")},
        )
        if done.returncode == 0:
            finished = True
            break
        assert done.returncode == -9, done.stderr
        attached = Managed(place.vendor, pause=place.waits.append)
        assert attached.status(place.launch).state in ("pending", "running", "done")
    assert finished and killed_at >= 3
    place.start()
    assert len(place.server.creates) == 1
    assert place.follow().state == "done"


# ---- bringing it ----------------------------------------------------------------------------

DOWNLOAD = {"together": "/v1/finetune/download", "nebius": r"/v1/files/result-.*/content", "fireworks": "/signed/"}


@pytest.mark.parametrize("vendor", [needs_sdk(name) for name in DOWNLOAD])
def test_an_interrupted_download_goes_on_where_it_stopped(place: Place) -> None:
    place.server.weights["adapter_model.safetensors"] = random.Random(0).randbytes(300_000)
    place.start()
    place.follow()
    place.server.fault("GET", DOWNLOAD[place.vendor] + ("|safetensors" if place.vendor != "together" else ""), "cut",
                       times=2, num_bytes=100_000)  # fmt: skip
    place.managed.fetch(place.launch, place.lines.append)
    (folder,) = place.run_folder.glob("managed/*/result/adapter")
    assert (folder / "adapter_model.safetensors").read_bytes() == place.server.weights["adapter_model.safetensors"]


ZSTD = """
import io, sys, tarfile, zstandard
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w") as tar:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"bytes"))
    member = tarfile.TarInfo("../outside")
    member.size = 5
    if len(sys.argv) > 1:
        tar.addfile(member, io.BytesIO(b"bytes"))
sys.stdout.buffer.write(zstandard.ZstdCompressor().compress(data.getvalue()))
"""


@pytest.mark.parametrize("vendor", [needs_sdk("together")])
@pytest.mark.parametrize("is_evil", [False, True])
def test_zstandard_archives_are_unpacked_and_stay_inside(place: Place, is_evil: bool) -> None:
    command = [python_of({}) or sys.executable, "-c", ZSTD, *(["evil"] if is_evil else [])]
    place.server.packed = subprocess.run(command, capture_output=True, check=True).stdout
    place.start()
    place.follow()
    if is_evil:
        with pytest.raises(LaunchError, match="outside"):
            place.managed.fetch(place.launch)
        assert not list(place.folder.rglob("outside"))
    else:
        place.managed.fetch(place.launch)
        (weights,) = place.run_folder.glob("managed/*/result/adapter/adapter_model.safetensors")
        assert weights.read_bytes() == b"bytes"


@pytest.mark.parametrize("vendor", [needs_sdk("fireworks")])
def test_what_is_no_adapter_is_not_taken_for_one(place: Place) -> None:
    place.server.weights = {"readme.txt": b"sorry"}
    place.start()
    place.follow()
    with pytest.raises(LaunchError, match=r"is no adapter.*readme.txt"):
        place.managed.fetch(place.launch)


# ---- before anything is sent ----------------------------------------------------------------


@each_vendor
def test_a_job_above_the_budget_is_not_ordered(place: Place) -> None:
    place.launch = dataclasses.replace(place.launch, budget_usd=0.0001)
    with pytest.raises(BudgetStopped, match=r"budget is .*Nothing was started"):
        place.start()
    assert not place.server.creates


@pytest.mark.parametrize("vendor", [needs_sdk("fireworks")])
def test_a_refused_launch_is_over_and_another_may_follow(place: Place) -> None:
    place.launch = dataclasses.replace(place.launch, budget_usd=0.0001)
    with pytest.raises(BudgetStopped):
        place.start()
    status = place.managed.status(place.launch)
    assert status.state == "failed" and "nothing was ordered" in status.note and status.cost_usd == 0
    place.launch = dataclasses.replace(place.launch, id="tuned-2", budget_usd=1.0)
    place.start()
    assert len(place.server.creates) == 1 and place.server.count("POST", ".*:upload") == 1


@pytest.mark.parametrize("vendor", [needs_sdk("fireworks")])
def test_stopped_before_the_order_nothing_is_ordered_later(place: Place) -> None:
    assert place.managed.status(place.launch).state == "pending"
    assert place.managed.stop(place.launch).state == "stopped"
    with pytest.raises(BadInput, match="was stopped before the job was ordered"):
        place.start()
    assert not place.server.requests


@pytest.mark.parametrize("vendor", ["fireworks"])
def test_a_launch_that_is_being_started_elsewhere_is_not_called_stopped(place: Place) -> None:
    journal = Journal(place.run_folder, LAUNCH_ID)
    with journal.locked(), pytest.raises(LaunchError, match="in use by another process"):
        place.managed.stop(place.launch)
    assert not Journal(place.run_folder, LAUNCH_ID).get("is_stopped")


@pytest.mark.parametrize("vendor", ["fireworks"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tag": "other", "intents": []}'])
def test_a_damaged_journal_orders_nothing(place: Place, text: str) -> None:
    journal = Journal(place.run_folder, LAUNCH_ID)
    journal.folder.mkdir(parents=True)
    journal.path.write_text(text, encoding="utf-8")
    for work in (place.start, lambda: place.managed.status(place.launch), lambda: place.managed.stop(place.launch)):
        with pytest.raises(LaunchError, match="whether a job was ordered is not known"):
            work()
    assert not place.server.requests


@pytest.mark.parametrize("vendor", ["fireworks"])
def test_a_stop_that_is_not_heard_is_told_in_words(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(place.run_folder, LAUNCH_ID).write(job_id="job-1", intents=["2026-11-28T10:00:00+00:00"])

    def away(*_: Any, **__: Any) -> None:
        raise client.CallFailed("connection", "no route to host")

    monkeypatch.setattr(client.Client, "once", away)
    with pytest.raises(LaunchError, match="no route to host"):
        place.managed.stop(place.launch)


@pytest.mark.parametrize("vendor", ["fireworks"])
def test_after_an_error_of_the_sdk_itself_the_order_counts_as_made(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(place.run_folder, LAUNCH_ID)
    journal.write(request={})
    flow = Flow(
        place.launch,
        place.managed._config(place.launch),
        place.managed.vendor,
        place.managed._client(place.launch),
        journal,
    )

    def broke(*_: Any, **__: Any) -> None:
        raise client.CallFailed("sdk", "the answer does not fit the SDK's own types")

    monkeypatch.setattr(client.Client, "once", broke)
    with pytest.raises(LaunchError, match="own types"):
        flow.create(None)  # type: ignore[arg-type]
    assert len(Journal(place.run_folder, LAUNCH_ID)["intents"]) == 1


@pytest.mark.parametrize("vendor", [needs_sdk("together"), needs_sdk("openai")])
def test_pairs_are_trained_on_by_preference(vendor: str, tmp_path: Path, keys: dict[str, str]) -> None:
    pairs = tuple(dataclasses.replace(row, rejected=(Message("assistant", "sales"),)) for row in rows())
    place = Place(vendor, tmp_path, RUN_FILE.replace("train: {", "train: {objective: dpo, dpo_beta: 0.2, "), pairs)
    place.start()
    (order,) = place.server.creates
    method = order["body"]["training_method" if vendor == "together" else "method"]
    told = method if vendor == "together" else method["dpo"]["hyperparameters"]
    assert method["method" if vendor == "together" else "type"] == "dpo"
    assert told["dpo_beta" if vendor == "together" else "beta"] == 0.2
    (file,) = place.server.files.values()
    assert json.loads(file.content.splitlines()[0])["non_preferred_output"][0]["content"] == "sales"
    place.server.close()


@pytest.mark.parametrize("vendor", [needs_sdk("together")])
def test_dev_rows_are_sent_only_when_asked_for(place: Place) -> None:
    write_curated(curated(rows(), rows(3)), place.run_folder / "data")
    options = {"managed": {**place.launch.options["managed"], "send_dev_rows": True}}
    place.launch = dataclasses.replace(place.launch, options=options)
    place.start()
    (order,) = place.server.creates
    assert len(place.server.files) == 2 and order["body"]["validation_file"] == "file-2"
    assert order["body"]["n_evals"] == 6


@pytest.mark.parametrize("vendor", [needs_sdk("nebius")])
def test_an_unknown_price_is_not_guessed(place: Place) -> None:
    place.launch = dataclasses.replace(place.launch, options={"managed": {"model": MODELS["nebius"]}})
    with pytest.raises(BadInput, match=r"price for .* is not known.*usd_per_million_train_tokens"):
        place.start()
    assert not place.server.creates


@pytest.mark.parametrize("vendor", [needs_sdk("nebius")])
def test_a_web_page_is_no_service(place: Place) -> None:
    place.server.fault("GET", "/v1/files$", "html", times=9)
    with pytest.raises(LaunchError, match="a web page or a proxy's login"):
        place.start()
    assert not place.server.creates


@pytest.mark.parametrize("vendor", [needs_sdk("together")])
def test_limits_of_the_model_are_kept(place: Place) -> None:
    text = RUN_FILE.replace("lora_rank: 16", "lora_rank: 128")
    place.run_file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"train.lora_rank 128: together takes 1 to 64 for Qwen/Qwen3-8B"):
        place.start()
    assert not place.server.files


@pytest.mark.parametrize("vendor", VENDORS)
def test_without_a_key_nothing_is_asked(vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FIREWORKS_ACCOUNT_ID", "acct")
    place = Place(vendor, tmp_path)
    with pytest.raises(ConfigError, match=r"environment variable .*_API_KEY is not set"):
        place.start()
    assert not place.server.requests and not place.managed.is_configured()
    place.server.close()


def test_without_the_sdk_the_lines_that_install_it_are_told(tmp_path: Path, keys: dict[str, str]) -> None:
    place = Place("together", tmp_path)
    made = tmp_path / "bare"
    venv.create(made, with_pip=False)
    options = {"managed": {"python": str(made / "bin" / "python"), "model": MODELS["together"]}}
    place.launch = dataclasses.replace(place.launch, options=options)
    with pytest.raises(MissingDependency, match="pip install 'together=="):
        place.start()
    place.server.close()


def test_a_quote_asks_nobody(tmp_path: Path) -> None:
    place = Place("fireworks", tmp_path)
    config = parse_run_file(RUN_FILE)
    order = Order(
        config=config,
        run_file=place.run_file,
        run_folder=place.run_folder,
        target=place.server.address,
        budget_usd=1.0,
        deadline_h=None,
        work_s=None,
        options=place.launch.options,
    )
    quote = place.managed.quote(order)
    (expense,) = quote.expenses
    assert quote.basis == "job" and expense.predicted_usd is not None and expense.predicted_usd.value > 0
    assert '"epochs": 2' in quote.shown and not place.server.requests
    place.server.close()


@pytest.mark.parametrize(
    "address", ["ftp://me:secret@x", "not an address", "https://me:secret@host/v1", "https://host/v1?key=1"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(BadInput) as raised:
        address_of(VENDOR["openai-compatible"], address, {})
    assert "secret" not in str(raised.value)


# ---- rows -----------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    """An earlier answer is left out of the loss where the service can; else the row is refused."""
    said = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    example = Example(tuple(said), (3, 4), "f.jsonl", 1, "x")
    assert row_of(VENDOR["openai"], example, "sft")["messages"][1] == {
        "role": "assistant", "content": "b", "weight": 0,
    }  # fmt: skip
    assert list(faults_of(VENDOR["openai"], example, "sft")) == []
    assert "1 earlier answers, which nebius would learn too" in next(iter(faults_of(VENDOR["nebius"], example, "sft")))
    twice = Example((said[0], said[0], said[1]), (2, 3))
    assert "two turns of 'user' in a row" in next(iter(faults_of(VENDOR["together"], twice, "sft")))
    assert list(faults_of(VENDOR["fireworks"], twice, "sft")) == []
    call = Example((said[0], Message("assistant", "", (ToolCall("look"),))), (1, 2))
    assert "ends with a tool call" in next(iter(faults_of(VENDOR["nebius"], call, "sft")))
    pair = dataclasses.replace(example, rejected=(Message("assistant", "e"),))
    row = row_of(VENDOR["together"], pair, "dpo")
    assert row["preferred_output"] == [{"role": "assistant", "content": "d"}]
    assert row["non_preferred_output"] == [{"role": "assistant", "content": "e"}]
    assert len(row["input"]["messages"]) == 3


def test_rows_that_are_too_long(tmp_path: Path) -> None:
    """The longest row has 14 + 30 + 7 characters: 8.5 to 20.4 tokens."""
    written = write_rows(VENDOR["together"], rows(12), "sft", tmp_path)
    assert written.longest_chars == 51 and check_lengths(VENDOR["together"], written, 21) == ""
    assert "may pass the 20 tokens" in check_lengths(VENDOR["together"], written, 20)
    with pytest.raises(DataError, match=r"at least some 8 tokens, .* of up to 8 .* set train.seq_len: 8"):
        check_lengths(VENDOR["together"], written, 8)
    assert tokens_of(written).value == pytest.approx(written.num_chars / 4 + 36 * 5)


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="9 training rows: openai takes no fewer than 10"):
        write_rows(VENDOR["openai"], rows(9), "sft", tmp_path)


@pytest.mark.parametrize("name", sorted(VENDOR))
def test_facts_of_a_vendor_are_whole(name: str) -> None:
    vendor = VENDOR[name]
    assert vendor.source and vendor.package.startswith(vendor.sdk.replace("fireworks", "fireworks-ai"))
    assert vendor.min_rows >= 1 and len(tag_of("x")) <= vendor.max_tag_chars
    assert not vendor.market or vendor.market in TERMS
    assert vendor.name == "openai-compatible" or vendor.base_url.startswith("https://")


# ---- secrets --------------------------------------------------------------------------------


@each_vendor
def test_keys_stand_nowhere(place: Place) -> None:
    """They reach the service and no file: not in the run folder, not in an error, not in a log."""
    place.start()
    place.server.fault("GET", "/v1/.*(jobs|fine-tunes|Jobs)", "status", status=401)
    with pytest.raises(LaunchError) as raised:
        place.managed.status(place.launch)
    place.follow()
    place.managed.fetch(place.launch, place.lines.append)
    sent = {key for _, path, key in place.server.requests if key}
    assert sent == {KEYS[place.managed.vendor.key_env]}
    said = "\n".join([*place.lines, str(raised.value)])
    for key in KEYS.values():
        assert key not in said
        for path in place.folder.rglob("*"):
            assert not path.is_file() or key.encode() not in path.read_bytes(), path
    assert all(not key for _, path, key in place.server.requests if path.startswith(("/signed", "/put")))
