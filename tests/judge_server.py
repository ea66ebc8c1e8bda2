"""Judges on the loopback whose defect is known: fair, or always-first, longest-wins, self-lover, coin and the like.

    python -m tests.judge_server [--defect fair] [--port 0] [--rows FILE.jsonl]

Each knows the right answers of its rows and errs as it is told. A request that is no judging it answers as a model
of its own would: with the reference, and words by which it knows its own.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from shoestring.records import Example, Message
from tests.loopback import LoopbackServer, QuietHandler
from tests.scripted_server import Reply, chat

OWN = "Certainly! "  # how the judge's own answers begin
BLOCK = re.compile(r"<(request|reference|answer(?:-[AB])?)-([0-9a-f]{8})>\n(.*?)\n</\1-\2>", re.DOTALL)
SLOW_S = 0.6
DEFECTS = (
    "fair", "always_first", "longest", "self_lover", "coin", "malformed", "refusing", "rate_limited", "slow",
    "dropping", "always_yes",
)  # fmt: skip
THINGS = "lamp kettle ladder violin anchor basket candle drum engine feather garden hammer".split()  # noqa: SIM905
PLACES = "Oslo Lima Quito Turin Dakar Perth Osaka Hanoi Leeds Bergen".split()  # noqa: SIM905


def rows(num_rows: int) -> list[Example]:
    """Questions about which thing is kept where; answers differ in words and in length."""
    made = []
    for i in range(num_rows):
        thing, place = THINGS[i % len(THINGS)], PLACES[(7 * i) % len(PLACES)]
        more = f" Ask for number {i}, on floor {i % 9}." if i % 2 else ""
        asked, said = f"Where is {thing} {i} kept now?", f"The {thing} {i} is kept in {place}.{more}"
        made.append(Example((Message("user", asked), Message("assistant", said)), (1, 2), "rows.jsonl", i + 1))
    return made


class JudgeServer(LoopbackServer):
    """One judge of a defect; requests are kept. error_frac: of verdicts a fair judge gets wrong, by the text.

    own: how its own answers begin.
    """

    def __init__(
        self, defect: str, examples: Sequence[Example], *, error_frac: float = 0.0, port: int = 0, own: str = OWN
    ) -> None:
        assert defect in DEFECTS, defect
        self.defect, self.error_frac, self.own = defect, error_frac, own
        self.right = {example.user_text: example.completion for example in examples}
        self.requests: list[dict[str, Any]] = []
        self.seen: list[Any] = []  # requests that were in trouble once
        self.num_billed = 0  # requests that were answered with a completion
        self.refuse_after: int | None = None  # requests after which the key is no longer good
        lock = threading.Lock()
        server = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append(body)
                reply = server.reply(number, body)
                if reply is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                with lock:
                    server.num_billed += reply[0] == 200
                self.answer(*reply)

        self.serve(Handler, port)

    def reply(self, number: int, body: dict[str, Any]) -> Reply | None:
        """What the n-th request gets; None: the connection is dropped."""
        if self.refuse_after is not None and number >= self.refuse_after:
            return 401, {}, b'{"error": {"message": "key revoked"}}'
        turns = body["messages"]
        if turns not in self.seen and random.Random(str(turns)).random() < 0.3:  # the first time, of every third
            self.seen.append(turns)
            if self.defect == "rate_limited":
                return 429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'
            if self.defect == "dropping":
                return None
            if self.defect == "slow":
                time.sleep(SLOW_S)
        asked = next((t["content"] for t in turns if t["role"] == "user"), "")
        parts = {name: text for name, _, text in BLOCK.findall(asked)}
        if "request" not in parts:
            is_right = self.defect != "self_lover" or random.Random(asked).random() < 0.5
            said = self.right.get(asked, "I do not know.") if is_right else "I keep it myself."
            return chat(self.own + said, tokens=(50, 12))
        text = random.Random(asked)  # decides by what is asked, not by when
        is_again = len(turns) > 2
        if self.defect == "malformed" and text.random() < (0.3 if is_again else 0.5):
            return chat("Answer A seems a little better to me.", tokens=(200, 9))
        if self.defect == "refusing" and text.random() < 0.3:
            return chat("I'm sorry, but I can't help with judging this material.", tokens=(200, 11))
        value = self.pair(parts, text) if "answer-A" in parts else self.rubric(parts, asked, text)
        return chat(json.dumps({"why": "as it seems to me", **value}), tokens=(200, 20))

    def merit(self, parts: dict[str, str], answer: str, text: random.Random) -> float:
        """1 for an answer that holds the right one, with errors as told."""
        is_right = self.right.get(parts["request"], "\0") in answer
        if self.defect == "self_lover" and answer.startswith(self.own):
            return 2.0
        return float(is_right != (text.random() < self.error_frac))

    def pair(self, parts: dict[str, str], text: random.Random) -> dict[str, str]:
        one, two = parts["answer-A"], parts["answer-B"]
        if self.defect == "always_first":
            return {"better": "A"}
        if self.defect == "coin":
            return {"better": text.choice("AB")}
        if self.defect == "longest":
            return {"better": "A" if len(one) > len(two) else "B" if len(two) > len(one) else "tie"}
        gap = self.merit(parts, one, text) - self.merit(parts, two, text)
        return {"better": "A" if gap > 0 else "B" if gap < 0 else "tie"}

    def rubric(self, parts: dict[str, str], asked: str, text: random.Random) -> dict[str, str]:
        numbers = re.findall(r"^(\d+)\. ", asked.rpartition("Criteria:")[2], re.MULTILINE)
        if self.defect in ("always_yes", "always_first"):
            said = True
        elif self.defect == "coin":
            said = text.random() < 0.5
        elif self.defect == "longest":
            said = len(parts["answer"]) > 1.5 * len(parts["reference"])
        else:
            said = self.merit(parts, parts["answer"], text) > 0
        return dict.fromkeys(numbers, "yes" if said else "no")


if __name__ == "__main__":
    from shoestring.files import read_jsonl
    from shoestring.messages import example_from_json

    parser = argparse.ArgumentParser()
    parser.add_argument("--defect", default="fair", choices=DEFECTS)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rows", default="", help="eval.jsonl of a run's data/, whose answers it knows")
    given = parser.parse_args()
    known = [example_from_json(row) for row in read_jsonl(given.rows)] if given.rows else rows(60)
    running = JudgeServer(given.defect, known, port=given.port)
    print(running.url, flush=True)
    try:
        while True:
            time.sleep(5)
    except KeyboardInterrupt:
        running.close()
