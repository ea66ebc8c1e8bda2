"""Run by the Python of distilabel's own environment, as a file: requests in, replies out; imports nothing of ours.

    python distilabel_run.py REQUESTS.json REPLIES.jsonl

Written for distilabel 1.5.3 (January 2025, its last release; see scripts/distilabel-requirements.txt).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(requests_path: str, replies_path: str) -> None:
    """One pipeline of one ChatGeneration step over all requests."""
    from distilabel.models import OpenAILLM  # type: ignore[import-not-found]
    from distilabel.pipeline import Pipeline  # type: ignore[import-not-found]
    from distilabel.steps import LoadDataFromDicts  # type: ignore[import-not-found]
    from distilabel.steps.tasks import ChatGeneration  # type: ignore[import-not-found]

    asked = json.loads(Path(requests_path).read_text(encoding="utf-8"))
    generation = {"temperature": asked["temperature"], "max_new_tokens": asked["max_new_tokens"]}
    if asked["seed"] is not None:
        generation["extra_body"] = {"seed": asked["seed"]}
    with Pipeline(name="shoestring-synth") as pipeline:
        load = LoadDataFromDicts(data=asked["requests"], batch_size=asked["num_parallel"])
        chat = ChatGeneration(
            name="chat",
            llm=OpenAILLM(
                model=asked["model"],
                base_url=asked["base_url"],
                api_key=os.environ.get("SHOESTRING_DISTILABEL_KEY") or "none",
                timeout=asked["timeout_s"],
                generation_kwargs=generation,
            ),
            input_batch_size=asked["num_parallel"],
        )
        load >> chat
    distiset = pipeline.run(use_cache=False)
    rows = distiset["default"]["train"] if len(distiset) else []
    Path(replies_path).write_text("".join(json.dumps(_reply(row)) + "\n" for row in rows), encoding="utf-8")


def _reply(row: dict[str, Any]) -> dict[str, Any]:
    statistics = (row.get("distilabel_metadata") or {}).get("statistics_chat") or {}
    return {
        "key": row["key"],
        "text": row["generation"],
        "num_prompt_tokens": _one(statistics.get("input_tokens")),
        "num_completion_tokens": _one(statistics.get("output_tokens")),
    }


def _one(number: Any) -> int | None:
    """distilabel gives a list of one a generation."""
    return (number[0] if number else None) if isinstance(number, list) else number


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
