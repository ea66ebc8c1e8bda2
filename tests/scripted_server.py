"""A chat-completions server on the loopback whose replies a test scripts; it keeps the requests it saw.

Run as a program it plays a teacher of intents (see `intents`), for trying `shoestring synth` by hand.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.loopback import LoopbackServer, QuietHandler

# What the server does with the n-th request (from 0): status, headers, body.
Reply = tuple[int, dict[str, str], bytes]
Script = Callable[[int, dict[str, Any]], Reply]


class ScriptedServer(LoopbackServer):
    """Answers POST by a script, each request in a thread of its own."""

    def __init__(self, script: Script, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        lock = threading.Lock()
        server = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
                status, headers, data = script(number, body)
                self.answer(status, headers, data)

        self.serve(Handler, port)


def chat(text: str, finish: str = "stop", tokens: tuple[int, int] = (100, 10)) -> Reply:
    """A completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }  # fmt: skip
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def is_answer(body: dict[str, Any]) -> bool:
    """Whether the request asks for the answer to an input, not for new examples."""
    return "JSON array" not in body["messages"][-1]["content"]


def intents(number: int, body: dict[str, Any]) -> Reply:
    """A teacher of two or more intents that errs in every way: each request asks for examples or for a label.

    It labels by the last word of an input, `(billing)`; what it writes ends so.
    """
    text = body["messages"][-1]["content"]
    draw = random.Random(f"{text}{body.get('seed')}")
    if is_answer(body):
        label = re.findall(r"\((\w+)\)", text)
        said = label[-1] if label and draw.random() < 0.9 else "delivery"
        return chat(draw.choice([said, said.title() + ".", f"```\n{said}\n```"]), tokens=(200, 3))
    label = re.findall(r"exactly: (\S+)", text)[0]
    count = int(re.findall(r"Write (\d+) new", text)[0])
    items = [
        {"input": f"My {' '.join(draw.sample(WORDS, 2))} number {draw.randrange(9999)} ({label})", "answer": label}
        for _ in range(count)
    ]
    fault = draw.random()
    if fault < 0.1:
        items[0]["answer"] = "no such label"
    elif fault < 0.2:
        items[-1]["input"] = "Where is my parcel? (delivery)"
    elif fault < 0.3:
        items[0]["answer"] = ""
    reply = json.dumps(items)
    if 0.3 <= fault < 0.4:
        return chat(reply[: len(reply) // 2], "length", (400, 100))
    if 0.4 <= fault < 0.5:
        return chat("I'm sorry, but I can't help with that request.", tokens=(400, 12))
    return chat(f"Here you are:\n```json\n{reply}\n```", tokens=(400, 25 * count))


WORDS = (
    "invoice", "parcel", "refund", "courier", "statement", "address", "charge", "tracking", "receipt", "box",
    "payment", "signature",
)  # fmt: skip


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    delay_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0

    def slow(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(delay_s)
        return intents(number, body)

    running = ScriptedServer(slow, port)
    print(running.url, flush=True)
    try:
        while True:
            time.sleep(5)
            print(len(running.requests), "requests", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        running.close()
