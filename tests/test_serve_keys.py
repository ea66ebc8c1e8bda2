"""Keys, limits and usage records, by hand and without a server."""

from __future__ import annotations

import json
import resource
import stat
from pathlib import Path

import pytest

from shoestring.errors import BadInput, ConfigError, RunFolderError
from shoestring.files import read_whole_lines
from shoestring.serve.gateway import keys as keys_module
from shoestring.serve.gateway.errors import ApiError
from shoestring.serve.gateway.keys import Key, Keys, key_at, new_key, private_folder, starting_keys
from shoestring.serve.gateway.limits import Allowance, Gate, Limits, read_limits
from shoestring.serve.gateway.usage import MachineTime, UsageLog, Used


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- keys ----


def test_a_key_is_made_kept_as_a_hash_and_found(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "state" / "keys.json")
    key = keys.add("team")
    assert keys.find(key) == Key("team") and keys.find(key + "x") is None
    text = (tmp_path / "state" / "keys.json").read_text()
    assert key not in text and json.loads(text)["keys"][0]["name"] == "team"
    assert mode(tmp_path / "state" / "keys.json") == 0o600 and mode(tmp_path / "state") == 0o700
    again = Keys(tmp_path / "state" / "keys.json")
    assert again.find(key) == Key("team")
    again.remove("team")
    assert again.find(key) is None and Keys(tmp_path / "state" / "keys.json").find(key) is None
    assert key not in repr(keys.__dict__) and key not in json.dumps(keys.listing())


def test_keys_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    keys = Keys(tmp_path / "keys.json")
    keys.give(new_key(), "default")
    keys.add("one")
    keys.add("two")
    keys.find("sk-wrong")
    assert compared == [(64, 64)] * 3  # every hash, whichever fits


@pytest.mark.parametrize("name", ["../x", "", "a/b", "default", "admin", "x" * 65, "-a"])
def test_names_of_keys_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        Keys(tmp_path / "keys.json").add(name)


def test_a_damaged_file_of_keys_is_told(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        Keys(tmp_path / "keys.json")


def test_the_keys_a_server_starts_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOESTRING_API_KEY", raising=False)
    monkeypatch.delenv("SHOESTRING_ADMIN_KEY", raising=False)
    keys, file, admin_file = starting_keys(tmp_path / ".serving", None)
    assert file is not None and admin_file is not None and mode(file) == mode(admin_file) == 0o600
    assert keys.find(file.read_text().strip()) == Key("default")
    assert keys.find(admin_file.read_text().strip()) == Key("admin", is_admin=True)
    again, _, _ = starting_keys(tmp_path / ".serving", None)
    assert again.find(file.read_text().strip()) == Key("default")  # the same at each start
    monkeypatch.setenv("SHOESTRING_API_KEY", "k" * 32)
    keys, file, _ = starting_keys(tmp_path / ".serving", None)
    assert file is None and keys.find("k" * 32) == Key("default")
    keys, file, _ = starting_keys(tmp_path / ".serving", tmp_path / "mine")  # a file given counts before the variable
    assert file == tmp_path / "mine" and keys.find("k" * 32) is None
    monkeypatch.setenv("SHOESTRING_ADMIN_KEY", "k" * 32)
    with pytest.raises(BadInput, match="one key"):
        starting_keys(tmp_path / ".serving", None)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    for text, why in (("short", "can be guessed"), ("two words", "2 words"), ("é" * 30, "no API key")):
        file = tmp_path / "key"
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(BadInput, match=why):
            key_at(file)
    file.write_text("k" * 30)
    file.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        key_at(file)


# ---- limits ----


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def limited(**own: int) -> tuple[Gate, Clock]:
    clock = Clock()
    return Gate(Limits(queue=4, keys={"team": Allowance(**own)}), clock), clock


def enter(gate: Gate, key: str = "team", n: int = 1, tokens: int = 10, new: int = 0) -> None:
    with gate.admitted(key, "model", n, tokens) as pay:
        pay(new)


def test_requests_a_minute_by_hand() -> None:
    gate, clock = limited(requests_per_minute=2)
    enter(gate)
    enter(gate)
    with pytest.raises(ApiError, match="2 requests a minute") as caught:
        enter(gate)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 30)
    enter(gate, "other")  # has no limit
    clock.now = 30
    enter(gate)


def test_tokens_are_owed_where_an_answer_was_long() -> None:
    gate, clock = limited(tokens_per_minute=60)
    enter(gate, tokens=10, new=110)  # 60 minus owed: 60 below nothing
    with pytest.raises(ApiError, match="60 tokens a minute") as caught:
        enter(gate, tokens=6)
    assert caught.value.retry_after_s == pytest.approx(66)
    clock.now = 66
    enter(gate, tokens=6)
    clock.now = 600
    enter(gate, tokens=1000)  # more than a minute's share needs a full bucket, and is not refused for ever


def test_answers_on_their_way_are_counted() -> None:
    gate, _ = limited(in_flight=2)
    with gate.admitted("team", "model", 2, 1):
        with pytest.raises(ApiError, match="2 is the limit"):
            enter(gate)
        with gate.admitted("other", "model", 2, 1), pytest.raises(ApiError, match="4 are its limit") as caught:
            enter(gate, "third")
    assert caught.value.retry_after_s is not None and gate.num_in_flight == 0
    with pytest.raises(ApiError) as never:
        enter(gate, n=3)
    assert never.value.status == 400  # coming again would not help
    enter(gate)


def test_the_file_of_limits(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("queue: 8\nkeys:\n  default: {requests_per_minute: 60}\n  '*': {in_flight: 1}\n")
    found = read_limits(path)
    assert (found.queue, found.keys["default"].requests_per_minute, found.timeout_s) == (8, 60, 600)
    gate = Gate(found)
    with gate.admitted("any", "model", 1, 1), pytest.raises(ApiError):
        enter(gate, "any")
    path.write_text("queue: 8\nkeys:\n  default: {request_per_minute: 60}\n")
    with pytest.raises(ConfigError, match=r"limits.yaml:3: keys.default.request_per_minute.*requests_per_minute"):
        read_limits(path)
    path.write_text("queue: 0\n")
    with pytest.raises(ConfigError, match=r"limits\.yaml:1: queue"):
        read_limits(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_limits(tmp_path / "none.yaml")


# ---- usage ----


def used(**own: float) -> Used:
    facts = {"num_prompt_tokens": 3, "num_cached_tokens": 0, "num_completion_tokens": 2, "wall_s": 2.0, **own}
    return Used(id="r", key="team", model="m", endpoint="chat", status=200, machine_s=1.0, **facts)  # type: ignore[arg-type]


def test_usage_is_appended_behind_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "s" / "usage.jsonl"
    path.parent.mkdir()
    path.write_text('{"whole": 1}\n{"cut": ')
    log = UsageLog(path, 3600.0)
    assert log.add(used())["cost_usd"] == 1.0
    log.close()
    rows = read_whole_lines(path)
    assert rows[0] == {"whole": 1} and rows[-1]["key"] == "team" and len(rows) == 2
    assert mode(path.parent) == 0o700


def full(path: Path) -> None:
    """A disk without room, in place of path."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


def test_records_wait_for_room_and_are_written_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s" / "usage.jsonl"
    log = UsageLog(path, None, retry_every_s=0.01)
    log.add(used(num_prompt_tokens=1))
    path.rename(tmp_path / "first")
    full(path)
    log.add(used(num_prompt_tokens=2))
    log.add(used(num_prompt_tokens=3))
    assert log.num_waiting == 2 and log.fault == "No space left on device" and not log.is_full
    assert sum("usage.jsonl cannot be written: No space left" in line for line in caplog.messages) == 1, "said once"
    path.unlink()
    assert log._retrying is not None
    log._retrying.join(60)  # by itself, without a further request
    assert [row["num_prompt_tokens"] for row in read_whole_lines(path)] == [2, 3] and not log.num_waiting
    assert "written again, with the 2 records" in caplog.messages[-1]
    log.close()


def test_records_without_room_to_the_end_are_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s" / "usage.jsonl"
    path.parent.mkdir()
    full(path)
    log = UsageLog(path, None)
    log.add(used())
    log.close()
    lines = caplog.messages[-1].splitlines()
    assert lines[0].startswith("1 records of usage could not be written") and json.loads(lines[1])["key"] == "team"


def test_a_line_cut_by_a_full_disk_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "s" / "usage.jsonl"
    log = UsageLog(path, None, retry_every_s=1e6)
    log.add(used(num_prompt_tokens=1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        log.add(used(num_prompt_tokens=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.num_waiting == 1 and not path.read_text().endswith("\n")
    log.add(used(num_prompt_tokens=3))
    log.close()
    assert [json.loads(line)["num_prompt_tokens"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "s" / "usage.jsonl"
    log = UsageLog(path, None)
    log.add(used(num_prompt_tokens=1))
    path.rename(path.with_suffix(".1"))
    log.add(used(num_prompt_tokens=2))
    log.close()
    assert [row["num_prompt_tokens"] for row in read_whole_lines(path.with_suffix(".1"))] == [1]
    assert [row["num_prompt_tokens"] for row in read_whole_lines(path)] == [2] and mode(path) == 0o600


def test_without_a_price_there_are_no_dollars() -> None:
    assert UsageLog(None, None).add(used())["cost_usd"] is None


def test_the_machines_time_is_shared_by_those_who_run() -> None:
    clock = Clock()
    machine = MachineTime(clock)
    a = machine.begin()
    clock.now = 10
    b = machine.begin()
    clock.now = 14
    assert machine.end(a) == 12  # ten alone, two of four
    clock.now = 20
    assert machine.end(b) == 8
    clock.now = 100  # idle
    c = machine.begin()
    clock.now = 101
    assert machine.end(c) == 1


def test_a_folder_that_cannot_be_made_says_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Not a directory; choose another place with --runs-dir"):
        private_folder(tmp_path / "file" / ".serving")
