"""API keys: made long and random, kept as hashes, compared in constant time, never written to a log.

A key of 256 random bits needs no slow hash: SHA-256 of it cannot be searched. Keys a person brings must be long.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import BadInput, RunFolderError
from ...files import read_json, write_json

PREFIX = "sk-shoestring-"
FEWEST_CHARACTERS = 20
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
KEY_VARIABLE = "SHOESTRING_API_KEY"
ADMIN_VARIABLE = "SHOESTRING_ADMIN_KEY"
DEFAULT, ADMIN = "default", "admin"  # names of the two keys that a server is started with


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks. name: in usage records and limits; the key itself is not here."""

    name: str
    is_admin: bool = False


class Keys:
    """The keys a server knows, by hash; those that an administrator added are kept in a file."""

    def __init__(self, file: Path | None = None) -> None:
        """file: keys.json, read if it is there. Raises: BadInput where it is damaged."""
        self.file = file
        self._given: dict[str, Key] = {}  # SHA-256, hexadecimal -> who; those of this start
        self._added: dict[str, dict[str, Any]] = {}  # the same, with dates, as the file has them
        self._lock = threading.Lock()
        if file is not None and file.exists():
            try:
                entries = read_json(file)["keys"]
                self._added = {str(entry["sha256"]): dict(entry) for entry in entries}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BadInput(
                    f"{file} is damaged ({error}); put a copy back, or delete it: the keys in it then no longer work"
                ) from error

    def give(self, key: str, name: str, *, is_admin: bool = False) -> None:
        """Take a key for as long as this server runs. Raises: BadInput where it is too short."""
        self._given[_hash(checked(key))] = Key(name, is_admin)

    def find(self, key: str) -> Key | None:
        """Whose key this is. Every hash is compared, each in constant time."""
        given, found = _hash(key), None
        for known, owner in self._given.items():
            if hmac.compare_digest(given, known):
                found = owner
        for known, entry in list(self._added.items()):
            if hmac.compare_digest(given, known):
                found = Key(str(entry["name"]))
        return found

    def add(self, name: str) -> str:
        """A new key, told this once. Raises: BadInput for a name that is taken or none."""
        if not NAME.fullmatch(name):
            raise BadInput(f"{name[:80]!r} cannot name a key; letters, digits and . _ - between them, 64 at most")
        with self._lock:
            if name in {DEFAULT, ADMIN, *(entry["name"] for entry in self._added.values())}:
                raise BadInput(f"there is a key named {name!r} already; delete it first, or choose another name")
            key = new_key()
            created_at = datetime.now(UTC).isoformat(timespec="seconds")
            self._write({**self._added, _hash(key): {"name": name, "sha256": _hash(key), "created_at": created_at}})
        return key

    def remove(self, name: str) -> None:
        """A key that no longer works from here on. Raises: BadInput."""
        with self._lock:
            left = {digest: entry for digest, entry in self._added.items() if entry["name"] != name}
            if len(left) == len(self._added):
                raise BadInput(f"no key is named {name[:80]!r} among those added: {self.names() or 'none'}")
            self._write(left)

    def names(self) -> str:
        """Of added keys, for a sentence."""
        return ", ".join(sorted(str(entry["name"]) for entry in self._added.values()))

    def listing(self) -> list[dict[str, Any]]:
        """Names, kinds and dates; no key, no hash."""
        given = [{**asdict(owner), "created_at": None} for owner in self._given.values()]
        added = [{"name": e["name"], "is_admin": False, "created_at": e["created_at"]} for e in self._added.values()]
        return given + added

    def _write(self, added: Mapping[str, dict[str, Any]]) -> None:
        if self.file is not None:
            private_folder(self.file.parent)
            write_json(self.file, {"keys": list(added.values())})
            self.file.chmod(0o600)
        self._added = dict(added)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def checked(key: str) -> str:
    """The key itself. Raises: BadInput where it could be guessed or cannot stand in a header."""
    if len(key) < FEWEST_CHARACTERS:
        raise BadInput(
            f"an API key of {len(key)} characters can be guessed; give one of {FEWEST_CHARACTERS} or more, "
            "such as from: openssl rand -hex 32"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BadInput("an API key holds a space or a character that a header cannot carry; give plain ASCII")
    return key


def private_folder(folder: Path) -> Path:
    """The folder, its owner's alone. Raises: RunFolderError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be made, private to its owner: {error.strerror}; choose another place with --runs-dir"
        ) from error
    return folder


def key_at(file: Path) -> str:
    """The key in a file, which is made with a new one where it is not there; for its owner alone.

    Raises: BadInput where others may read it, or it holds none; RunFolderError.
    """
    try:
        private = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _key_in(file)
    except OSError as error:
        raise RunFolderError(f"cannot write {file}: {error.strerror}; it would hold the API key") from error
    key = new_key()
    with os.fdopen(private, "w", encoding="ascii") as stream:
        stream.write(key + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return key


def _key_in(file: Path) -> str:
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} holds no API key that can be read: {error}") from error
    if os.name == "posix" and mode & 0o077:
        raise BadInput(f"{file} can be read by others (mode {mode & 0o777:o}); make it yours alone: chmod 600 {file}")
    words = text.split()
    if len(words) != 1:
        raise BadInput(f"{file} holds {len(words)} words; put one API key in it, or delete it and one is made")
    return checked(words[0])


def starting_keys(state: Path, key_file: Path | None) -> tuple[Keys, Path | None, Path | None]:
    """The keys a server starts with, and the files that hold them (None: it came from the environment).

    Raises: BadInput, RunFolderError.
    """
    private_folder(state)
    keys = Keys(state / "keys.json")
    found: list[Path | None] = []
    for name, variable, file in (
        (DEFAULT, KEY_VARIABLE, key_file or state / "api-key"),
        (ADMIN, ADMIN_VARIABLE, state / "admin-key"),
    ):
        brought = os.environ.get(variable, "") if file != key_file else ""
        keys.give(brought or key_at(file), name, is_admin=name == ADMIN)
        found.append(None if brought else file)
    if len(keys._given) < 2:
        raise BadInput(f"{KEY_VARIABLE} and {ADMIN_VARIABLE} are one key; the admin key must be another")
    return keys, found[0], found[1]
