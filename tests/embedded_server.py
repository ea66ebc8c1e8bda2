"""An OpenAI-compatible server on the loopback that answers with an embedded model: a real teacher for tests.

    python -m tests.embedded_server [--port 0] [--model shoestring-1m] [--key KEY]

Greedy and deterministic: temperature and seed are accepted and change nothing. Prints its base_url.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from typing import Any

from shoestring.evaluate.generation import load_generator
from shoestring.records import Message
from shoestring.train.base import detect_device
from tests.loopback import LoopbackServer, QuietHandler

MAX_NEW_TOKENS = 512


class EmbeddedServer(LoopbackServer):
    """Serves GET /v1/models and POST /v1/chat/completions until closed; num_answered counts completions."""

    def __init__(self, model: str = "shoestring-1m", *, port: int = 0, key: str = "") -> None:
        self.model, self.key = model, key
        self.num_answered = 0
        # Before the first request: importing torch may take longer than a client waits.
        self._generator = load_generator(model, device=detect_device(1), max_new_tokens=MAX_NEW_TOKENS)
        self._one_at_a_time = threading.Lock()  # torch uses all its threads for one
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                if self.path.rstrip("/") == "/v1/models":
                    self.reply(200, {"object": "list", "data": [{"id": server.model, "object": "model"}]})
                else:
                    self.refuse(404, f"no such path: {self.path}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path != "/v1/chat/completions":
                    self.refuse(404, f"no such path: {self.path}")
                elif server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                    self.refuse(401, "Incorrect API key provided")
                else:
                    try:
                        self.reply(200, server.complete(json.loads(body)))
                    except (ValueError, KeyError, TypeError) as error:  # ModelError is a ValueError
                        self.refuse(400, str(error))

            def refuse(self, status: int, message: str) -> None:
                self.reply(status, {"error": {"message": message, "type": "invalid_request_error"}})

            def reply(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.answer(status, {"Content-Type": "application/json"}, data)

        self.serve(Handler, port)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The response to a request. Raises: KeyError, ModelError for one that cannot be answered."""
        messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        limit = min(int(body.get("max_completion_tokens") or body.get("max_tokens") or 64), MAX_NEW_TOKENS)
        with self._one_at_a_time:
            self._generator.max_new_tokens = limit
            done = self._generator.generate([messages])[0]
            self.num_answered += 1
        return {
            "id": f"chatcmpl-{self.num_answered}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": done.text},
                    "finish_reason": "stop" if done.stopped else "length",
                }
            ],
            "usage": {
                "prompt_tokens": done.num_prompt_tokens,
                "completion_tokens": done.num_completion_tokens,
                "total_tokens": done.num_prompt_tokens + done.num_completion_tokens,
            },
        }


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="shoestring-1m")
    parser.add_argument("--key", default="")
    given = parser.parse_args()
    server = EmbeddedServer(given.model, port=given.port, key=given.key)
    print(server.url, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.close()


if __name__ == "__main__":
    main()
