"""The same requests through a distilabel pipeline, in an environment of its own behind a process boundary."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import BadInput, EndpointError
from ..files import read_whole_lines, write_json
from ..messages import split_tools
from ..records import Completion, Generate, Message, Progress, no_progress
from .client import Client, now

RUNNER = Path(__file__).with_name("distilabel_run.py")
INSTALL = "python3.11 -m venv DIR && DIR/bin/pip install -r scripts/distilabel-requirements.txt (docs/synth.md)"


@dataclass
class Distilabel:
    """A pipeline a call. Answers are kept in the client's file, under the client's keys.

    They arrive when a call ends: a kill loses those of the call, where the client itself loses those in flight.
    """

    client: Client
    python: Path

    def __post_init__(self) -> None:
        if not self.python.is_file():
            raise BadInput(
                f"synth.distilabel_python {str(self.python)!r} is no program; name the Python of an environment "
                f"with distilabel, made with: {INSTALL}"
            )

    def sampling(self, seed: int) -> Generate:
        """generate with a sampling seed."""
        return partial(self.generate, seed=seed)

    def generate(
        self, prompts: list[tuple[Message, ...]], progress: Progress = no_progress, seed: int | None = None
    ) -> list[Completion]:
        """One completion a prompt, in order; equal prompts are asked once. Raises: EndpointError."""
        missing = [p for p in dict.fromkeys(prompts) if not self.client.has(p, seed)]
        if any(split_tools(prompt)[0] for prompt in missing):
            raise BadInput("--engine distilabel sends no tools, and these prompts declare some; use --engine builtin")
        if missing:
            self._run(missing, seed)
        return self.client.generate(prompts, progress, seed)  # all are in the file now

    def _run(self, prompts: list[tuple[Message, ...]], seed: int | None) -> None:
        client, config = self.client, self.client.config
        keys = [client.key(prompt, seed) for prompt in prompts]
        with tempfile.TemporaryDirectory(prefix="shoestring-distilabel-") as folder:
            requests, replies = Path(folder, "requests.json"), Path(folder, "replies.jsonl")
            write_json(
                requests,
                {
                    "base_url": config.base_url,
                    "model": config.model,
                    "temperature": client.temperature,
                    "seed": seed,
                    "max_new_tokens": client.max_new_tokens,
                    "timeout_s": config.timeout_s,
                    "num_parallel": config.num_parallel,
                    "requests": [
                        {"key": key, "messages": [{"role": m.role, "content": m.content} for m in prompt]}
                        for key, prompt in zip(keys, prompts, strict=True)
                    ],
                },
            )
            key = client.headers.get("Authorization", "").removeprefix("Bearer ")
            started = time.monotonic()
            done = subprocess.run(
                [str(self.python), "-I", str(RUNNER), str(requests), str(replies)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "SHOESTRING_DISTILABEL_KEY": key, "NO_COLOR": "1"},
            )
            latency_s = (time.monotonic() - started) / len(prompts)
            rows: list[dict[str, Any]] = read_whole_lines(replies) if replies.exists() else []
        num_answered = 0
        for row in rows:
            completion = self._completion(row, latency_s)
            if completion is not None:
                client.answers.add(row["key"], completion, url=client.url, model=config.model, engine="distilabel")
                num_answered += 1
        if num_answered < len(prompts):
            said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            raise EndpointError(
                f"endpoint {config.name!r} ({client.url}) through distilabel: {num_answered} of {len(prompts)} "
                f"requests were answered (exit status {done.returncode}); it said: {_tell(said)}; answers so far are "
                "kept. --engine builtin says more of the endpoint; where distilabel does not start, make its "
                f"environment anew: {INSTALL}"
            )

    def _completion(self, row: dict[str, Any], latency_s: float) -> Completion | None:
        """An answer with its cost; None where distilabel gave none, or no token counts though they cost."""
        num_in, num_out = row["num_prompt_tokens"], row["num_completion_tokens"]
        config = self.client.config
        prices = (config.usd_per_million_input_tokens, config.usd_per_million_output_tokens)
        if row["text"] is None or (any(prices) and not (isinstance(num_in, int) and isinstance(num_out, int))):
            return None
        num_in, num_out = num_in or 0, num_out or 0
        cost_usd = (num_in * prices[0] + num_out * prices[1]) / 1e6
        # distilabel does not hand on the reason a reply ended; at the limit it was cut.
        stopped = num_out < self.client.max_new_tokens
        return Completion(row["text"], num_in, num_out, latency_s, cost_usd, stopped, now())


def _tell(lines: list[str]) -> str:
    """The lines of a log that name an error, else its end; short."""
    telling = [line for line in lines if "Error" in line and "Warning" not in line] or lines
    return " | ".join(line[:200] for line in telling[-3:]) or "nothing"
