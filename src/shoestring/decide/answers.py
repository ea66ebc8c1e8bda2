"""Answers that were paid for: appended as they arrive, one JSON line each, found again by their request's hash."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ..files import cannot_write, read_whole_lines
from ..records import Completion, to_json


class AnswerFile:
    """An append-only file of answers; a line that a kill cut short is asked for again.

    is_durable: each answer is on the disk before the next is asked for, as those that cost money should be; without it
    answers outlive the process at once, and a power cut may lose the last of them.
    """

    def __init__(self, path: Path, *, is_durable: bool = True) -> None:
        self.path, self.is_durable = path, is_durable
        self._lock = threading.Lock()
        self._found: dict[str, Completion] = {}
        for line in read_whole_lines(path) if path.exists() else []:
            try:
                self._found[line["request"]] = Completion(**line["answer"])
            except (KeyError, TypeError):
                continue

    def get(self, request: str) -> Completion | None:
        """The answer to the request with this hash, with the cost and latency it had; None when there is none."""
        return self._found.get(request)

    def add(self, request: str, answer: Completion, **about: Any) -> None:
        """Append an answer. Raises: RunFolderError when the file cannot be written."""
        line = json.dumps({"request": request, **about, "answer": to_json(answer)}).encode()
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab+") as file:
                    if file.tell() and not self._ends_whole():
                        line = b"\n" + line
                    file.write(line + b"\n")
                    file.flush()
                    if self.is_durable:
                        os.fsync(file.fileno())
            except OSError as error:
                raise cannot_write(self.path, error) from error
            self._found[request] = answer

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def spent_usd(self) -> float:
        """What all answers in the file cost together."""
        with self._lock:
            return sum(answer.cost_usd for answer in self._found.values())
