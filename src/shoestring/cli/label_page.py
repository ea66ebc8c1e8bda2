"""The labelling page: served to this machine alone, under an address that only who started it knows."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from ..errors import BadInput
from .output import warn

if TYPE_CHECKING:
    from ..evaluate.judge.labelling import Item, Labelling

PAGE = Path(__file__).with_name("label.html")
HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 16


class Page:
    """The session behind HTTP: one item at a time, a label, and taking it back."""

    def __init__(self, session: Labelling, num_rows: int, port: int = 0) -> None:
        self.session, self.num_rows = session, num_rows
        self.token, self.nonce = secrets.token_urlsafe(16), secrets.token_urlsafe(12)
        self.lock = threading.Lock()
        try:
            self.http = ThreadingHTTPServer((HOST, port), _handler(self))
        except OSError as error:
            raise BadInput(f"--port {port}: {error.strerror}; leave it out to take one that is free") from None
        self.http.daemon_threads = True
        self.url = f"http://{HOST}:{self.http.server_port}/?token={self.token}"

    def run(self) -> None:
        """Serve until the page is closed by its button, or close() is called."""
        self.http.serve_forever(0.1)
        self.http.server_close()

    def close(self) -> None:
        """End run(), from another thread."""
        self.http.shutdown()

    # ---- what the page asks ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The next item and how far it is; item None at the end."""
        is_enough = self.session.num_rows >= self.num_rows
        item = None if is_enough else self.session.next()
        return {
            "item": None if item is None else shown(item),
            "num_rows": self.session.num_rows,
            "wanted": self.num_rows,
            "mode": self.session.config.mode,
            "criteria": list(self.session.criteria),
        }

    def say(self, body: dict[str, Any]) -> dict[str, Any]:
        """Keep a label of the item that is shown. Raises: Refused."""
        item, said = self.session.next(), body.get("said")
        if item is None or body.get("id") != item.id:
            raise Refused(409, "another row is due; the page shows it now")
        if not self.session.is_label(said):
            raise Refused(400, "no label")
        self.session.say(item, said)
        return self.state()

    def undo(self) -> dict[str, Any]:
        """Take the last label back."""
        self.session.undo()
        return self.state()


@dataclass
class Refused(Exception):
    """A request that is answered by a status."""

    status: int
    reason: str


def shown(item: Item) -> dict[str, Any]:
    """What the page may know of an item: nothing of arm or judge."""
    return {"id": item.id, "turns": item.turns, "reference": item.reference, "answers": item.answers}


def _handler(page: Page) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            given = parse_qs(address.query).get("token", [""])[0] or self.headers.get("X-Token", "")
            try:
                self._allow(given)
                if address.path == "/":
                    text = PAGE.read_text(encoding="utf-8").replace("NONCE", page.nonce)
                    self._send(200, text.encode(), "text/html; charset=utf-8")
                elif address.path == "/item":
                    with page.lock:
                        self._json(200, page.state())
                else:
                    raise Refused(404, "no such page")
            except Refused as refused:
                self._json(refused.status, {"error": refused.reason})

        def do_POST(self) -> None:
            try:
                self._allow(self.headers.get("X-Token", ""))
                body = self._body()
                with page.lock:
                    if self.path == "/say":
                        self._json(200, page.say(body))
                    elif self.path == "/undo":
                        self._json(200, page.undo())
                    elif self.path == "/close":
                        self._json(200, {})
                        threading.Thread(target=page.close, daemon=True).start()
                    else:
                        raise Refused(404, "no such page")
            except Refused as refused:
                self._json(refused.status, {"error": refused.reason})

        def _allow(self, token: str) -> None:
            """Of this machine, by the address that was printed: another site's script can send neither."""
            host = self.headers.get("Host", "")
            port = page.http.server_port
            if host not in (f"{HOST}:{port}", f"localhost:{port}"):
                raise Refused(403, "not this host")
            if not hmac.compare_digest(token.encode(), page.token.encode()):
                raise Refused(403, "open the address that shoestring label printed, with its token")

        def _body(self) -> dict[str, Any]:
            try:
                length = int(self.headers.get("Content-Length", "0"))
                if not 0 <= length <= MAX_BODY_BYTES:
                    raise Refused(413, "too long")
                value = json.loads(self.rfile.read(length) or b"{}")
            except ValueError:
                raise Refused(400, "no JSON") from None
            if not isinstance(value, dict):
                raise Refused(400, "no JSON object")
            return value

        def _json(self, status: int, value: Any) -> None:
            self._send(status, json.dumps(value).encode(), "application/json")

        def _send(self, status: int, data: bytes, kind: str) -> None:
            policy = (
                f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{page.nonce}'; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            self.send_response(status)
            for name, text in (
                ("Content-Type", kind),
                ("Content-Length", str(len(data))),
                ("Content-Security-Policy", policy),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def serve(session: Labelling, num_rows: int, port: int) -> None:
    """Serve the page until it is closed there or by Ctrl-C; every label is kept as it is given."""
    page = Page(session, num_rows, port)
    warn(f"Open {page.url}\nEach label is kept as it is given; close with q on the page, or Ctrl-C here.")
    try:
        page.run()
    except KeyboardInterrupt:
        page.http.server_close()
