"""A file from a multipart request, straight to its place on disk: bounded, hashed and checked line by line."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from .asked import refused, whole
from .store import TRAIN, Files, Incoming, StoredFile

if TYPE_CHECKING:
    from starlette.requests import Request

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
MAX_FIELD_BYTES, MAX_PARTS = 1000, 8
MAX_FILENAME_CHARS = 255
SHORTEST_S, LONGEST_S = 3600, 30 * 24 * 3600  # expires_after, as the API has it


class Form:
    """Callbacks of the parser; what they find."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.fields: dict[str, str] = {}
        self.incoming: Incoming | None = None
        self.filename = ""
        self.num_parts = 0
        self.name, self.value, self.is_file = "", b"", False
        self.field_now, self.value_now = b"", b""
        self.disposition: bytes | None = None

    def callbacks(self) -> Any:
        names = "part_begin part_data part_end header_field header_value header_end headers_finished"
        return {f"on_{name}": getattr(self, name) for name in names.split()}

    def part_begin(self) -> None:
        self.num_parts += 1
        if self.num_parts > MAX_PARTS:
            raise refused(f"more than {MAX_PARTS} parts; send file, purpose and expires_after")
        self.name, self.value, self.is_file, self.disposition = "", b"", False, None

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.field_now += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value_now += data[start:end]

    def header_end(self) -> None:
        if self.field_now.lower() == b"content-disposition":
            self.disposition = self.value_now
        self.field_now, self.value_now = b"", b""

    def headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self.disposition)
        self.name = options.get(b"name", b"").decode("utf-8", "replace")
        self.is_file = self.name == "file" and b"filename" in options
        if self.is_file:
            if self.incoming is not None:
                raise refused("two files in one request; send one", "file")
            self.filename = _told(options[b"filename"].decode("utf-8", "replace"))
            if not self.filename.lower().endswith(".jsonl"):
                raise refused(
                    f"Invalid file format: {self.filename!r}; a file to tune on is JSON Lines and named .jsonl",
                    "file",
                    "invalid_file_format",
                )
            self.incoming = Incoming(self.files)
        elif self.name not in FIELDS:
            raise refused(f"Unrecognized request argument supplied: {self.name[:64]}", self.name[:64])

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self.is_file:
            assert self.incoming is not None
            self.incoming.write(data[start:end])
            return
        self.value += data[start:end]
        if len(self.value) > MAX_FIELD_BYTES:
            raise refused(f"{self.name} is longer than {MAX_FIELD_BYTES} bytes", self.name)

    def part_end(self) -> None:
        if not self.is_file:
            self.fields[self.name] = self.value.decode("utf-8", "replace")

    def finish(self, owner: str) -> StoredFile:
        """Raises: ApiError for what is missing or wrong."""
        if self.incoming is None:
            raise refused("file is a required property: the bytes of a .jsonl file, as multipart/form-data", "file")
        purpose = self.fields.get("purpose")
        if purpose != TRAIN:
            raise refused(f"purpose {purpose!r} is not offered here; files of purpose '{TRAIN}' alone are", "purpose")
        return self.incoming.finish(owner, self.filename, purpose, self._expires_at())

    def _expires_at(self) -> int | None:
        given = [self.fields.get(name) for name in FIELDS[1:]]
        if given == [None, None]:
            return None
        anchor, seconds = given
        num_s = whole(seconds or "", SHORTEST_S, LONGEST_S)
        if anchor != "created_at" or num_s is None:
            raise refused(
                f"expires_after is {{anchor: created_at, seconds: {SHORTEST_S} to {LONGEST_S}}}", "expires_after"
            )
        return int(time.time()) + num_s


def _told(filename: str) -> str:
    """A client's name for a file, to show it: the last part of a path, printable."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:MAX_FILENAME_CHARS]


async def receive(request: Request, files: Files, owner: str) -> StoredFile:
    """The uploaded file, stored. Raises: ApiError; nothing is left of an upload that is refused or breaks off."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise refused("a file is sent as multipart/form-data with the parts file and purpose")
    form = Form(files)
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        async for chunk in request.stream():  # bounded by the gateway, the file itself where it is written
            await asyncio.to_thread(parser.write, chunk) if len(chunk) > 1 << 20 else parser.write(chunk)
        parser.finalize()
        if form.incoming is not None and form.num_parts and parser.state != _end_state():
            raise refused("the request broke off before its last part ended; send it again")
        return form.finish(owner)
    except FormParserError as error:
        raise refused(f"the request is no multipart/form-data: {error}") from error
    finally:
        if form.incoming is not None:
            form.incoming.drop()


def _end_state() -> Any:
    from python_multipart.multipart import MultipartState

    return MultipartState.END
