"""Keys never reach what a person or another process reads; they travel by environment or an owner's file."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from shoestring.cli.main import run as shoestring
from shoestring.config import parse_run_file
from shoestring.errors import BadInput, ConfigError
from shoestring.launch.needs import variables
from shoestring.secrets import MASK, masked, secrets_of, to_hand_on, without_secrets, write_for_owner

PLANTED = "sk-planted/4711+x"


def test_secrets_are_told_by_their_names() -> None:
    environment = dict.fromkeys(
        ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "MY_SAS"], PLANTED
    )
    harmless = dict.fromkeys(["TOKENIZERS_PARALLELISM", "HOME", "AWS_REGION", "SSH_AUTH_SOCK", "KEYBOARD"], "a value")
    assert secrets_of({**environment, **harmless}) == environment
    assert secrets_of({"ODD": PLANTED}, more=["ODD"]) == {"ODD": PLANTED}
    assert secrets_of({"API_KEY": "x"}) == {}  # too short to be one


def test_values_are_masked_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", PLANTED)
    monkeypatch.setenv("QUOTED_TOKEN", 'a"b\\c-secret')
    lines = [f"403 for {PLANTED}", "https://h/?key=sk-planted%2F4711%2Bx", json.dumps({"k": 'a"b\\c-secret'})]
    shown = list(masked(lines))
    assert shown == [f"403 for {MASK}", f"https://h/?key={MASK}", f'{{"k": "{MASK}"}}']
    assert without_secrets("s3://user:word@bucket/x") == f"s3://{MASK}@bucket/x"


def test_what_is_handed_on_is_named_where_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONE_KEY", PLANTED)
    monkeypatch.delenv("OTHER_KEY", raising=False)
    assert to_hand_on(["ONE_KEY"], optional=["OTHER_KEY"]) == {"ONE_KEY": PLANTED}
    with pytest.raises(BadInput, match="OTHER_KEY, not set here"):
        to_hand_on(["ONE_KEY", "OTHER_KEY"])
    path = tmp_path / "environment.json"
    path.write_text("{}")  # an earlier one, open to others
    path.chmod(0o644)
    write_for_owner(path, {"ONE_KEY": PLANTED})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and json.loads(path.read_text()) == {"ONE_KEY": PLANTED}


RUN = """
name: tickets
task: {kind: extract, bar: 0.9}
data: {train: rows.jsonl}
"""
ENDPOINT = (
    "{name: big, base_url: 'https://h/v1', model: m, api_key_env: KEY_OF_BIG, usd_per_million_input_tokens: 1, "
    "usd_per_million_output_tokens: 1}"
)


def test_what_a_run_needs_goes_by_name() -> None:
    more = (
        f"decide: {{endpoints: [{ENDPOINT}]}}\ntrain: {{checkpoints: 's3://b/f', trackers: [wandb]}}\n"
        "models: Qwen/Qwen3-0.6B\nlaunch: {env: [MINE]}\n"
    )
    config = parse_run_file(RUN + more)
    needed, optional = variables(config, config.launch.model_dump())
    assert needed == ["KEY_OF_BIG", "MINE"]
    assert {"AWS_SECRET_ACCESS_KEY", "AWS_REGION", "WANDB_API_KEY", "HF_TOKEN"} <= set(optional)
    assert variables(parse_run_file(RUN)) == ([], [])


@pytest.mark.parametrize("place", ["launch: {env: [KEY]}", f"decide: {{endpoints: [{ENDPOINT}]}}"])
def test_a_key_put_where_its_name_belongs_is_refused_and_not_repeated(place: str) -> None:
    text = RUN + place.replace("KEY_OF_BIG", PLANTED).replace("KEY]", f"{PLANTED}]")
    with pytest.raises(ConfigError, match="take it out of the run file") as caught:
        parse_run_file(text)
    assert PLANTED not in str(caught.value)


def test_no_command_about_a_launch_writes_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that says its key aloud: an endpoint's answer does so now and then."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ODD_NAME", PLANTED)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED[::-1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": f"key {PLANTED}", "completion": "x"}) + "\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'run' in sys.argv: print('error: 401', os.environ['ODD_NAME'],"
        " os.environ['AWS_SECRET_ACCESS_KEY'], file=sys.stderr, flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = [{"prompt": f"{n} cups", "completion": json.dumps({"n": n})} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # A model that is nowhere: the launched run fails soon, in its own words.
    (tmp_path / "run.yaml").write_text(RUN + "launch: {env: [ODD_NAME]}\nmodels: nowhere/none\n")
    said = []
    for command in (
        ["launch", "run.yaml", "--dry-run"],
        ["launch", "run.yaml", "--dry-run", "--json"],
        ["launch", "run.yaml"],
        ["launch", "run.yaml", "--status", "--json"],
        ["launch", "run.yaml", "--logs"],
        ["launch", "tickets", "--stop"],
        ["runs"],
        ["runs", "--json"],
        ["runs", "--orphans"],
    ):
        shoestring(command)
        said.append("".join(capfd.readouterr()))
    assert f"error: 401 {MASK} {MASK}" in said[2] and f"error: 401 {MASK} {MASK}" in said[4]
    assert "failed" in said[3] and "tickets-" in said[6]
    for key in (PLANTED, PLANTED[::-1]):
        assert not [text for text in said if key in text]
        found = [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
        assert not found
