"""What the tests' HTTP servers on the loopback share: a quiet handler, a thread, an address, an end."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class QuietHandler(BaseHTTPRequestHandler):
    """Answers whole bodies, logs nothing, and does not mind a client that gave up."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        """Send a response; Content-Length unless headers give another."""
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client gave up

    def log_message(self, *args: Any) -> None:
        pass


class LoopbackServer:
    """Serves at `url` until closed, each request in a thread of its own."""

    def serve(self, handler: type[QuietHandler], port: int = 0) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.http.shutdown()
        self.http.server_close()
