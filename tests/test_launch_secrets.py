"""Keys never reach what a person or another process reads; they travel by environment or an owner's file."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from shoestring.errors import BadInput
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
