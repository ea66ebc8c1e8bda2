"""A streaming chat-completions server on the loopback that echoes: it plays a server under load, and its faults.

The answer is the model's name, then the prompt's own last words, a piece each. A token is a word. What a request's last
message begins with decides what goes wrong: see FAULTS.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.loopback import LoopbackServer, QuietHandler

FAULTS = ("busy", "cut", "broken", "garbage", "vanish")


class StreamServer(LoopbackServer):
    """Serves models (name to parent) with a key; refuses the parameters named in refused."""

    def __init__(
        self,
        models: dict[str, str | None],
        *,
        key: str = "",
        refused: tuple[str, ...] = (),
        version: str = "",
        counts_tokens: bool = True,
        busy: int = 0,
    ) -> None:
        """busy: so many requests are refused with 429 first."""
        self.bodies: list[dict[str, Any]] = []
        self.asked = threading.Semaphore(0)  # released for each request
        server, lock = self, threading.Lock()

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    rows = [{"id": name, "parent": parent, "owned_by": "echo"} for name, parent in models.items()]
                    self.reply(200, {"object": "list", "data": rows})
                elif self.path == "/version" and version:
                    self.reply(200, {"version": version})
                else:
                    self.refuse(404, f"no such path: {self.path}")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    is_busy = len(server.bodies) <= busy
                server.asked.release()
                said = body["messages"][-1]["content"].split()
                wrong = next((name for name in refused if name in body), None)
                if key and self.headers.get("Authorization") != f"Bearer {key}":
                    self.refuse(401, "Incorrect API key provided")
                elif wrong:
                    self.refuse(400, f"Unsupported parameter: {wrong}")
                elif body["model"] not in models:
                    self.refuse(404, f"no model {body['model']}")
                elif is_busy or said[0] == "busy":
                    self.refuse(429, "the queue is full", {"Retry-After": "0.01"})
                elif said[0] == "vanish":
                    self.close_connection = True
                else:
                    self.stream(body, said)

            def stream(self, body: dict[str, Any], said: list[str]) -> None:
                limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
                words = [body["model"], *said][:limit]
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for number, word in enumerate(words):
                        if number == 1 and said[0] in FAULTS:
                            self.go_wrong(said[0])
                            return
                        self.event({"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]})
                    self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                    if counts_tokens and (body.get("stream_options") or {}).get("include_usage"):
                        num = sum(len(m["content"].split()) for m in body["messages"])
                        usage = {
                            "prompt_tokens": num,
                            "completion_tokens": len(words),
                            "total_tokens": num + len(words),
                        }
                        usage["prompt_tokens_details"] = {"cached_tokens": num // 2}  # type: ignore[assignment]
                        self.event({"choices": [], "usage": usage})
                    self.chunk(b"data: [DONE]\n\n")
                    self.chunk(b"")
                except OSError:
                    self.close_connection = True  # the client gave up

            def go_wrong(self, how: str) -> None:
                if how == "broken":
                    self.event({"error": {"message": "the engine ended", "type": "server_error"}})
                elif how == "garbage":
                    self.chunk(b"data: <html>\n\n")
                self.chunk(b"")

            def event(self, value: Any) -> None:
                self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

            def chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
                self.reply(status, {"error": {"message": message, "type": "x"}}, headers)

            def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
                self.answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

        self.serve(Handler)
