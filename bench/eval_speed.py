"""How fast held-out rows are answered, against a plain `model.generate` loop over the same rows.

    python -m bench.eval_speed [--rows 256] [--model shoestring-3m] [--json]

scenarios: shared_prompt (banking77 under one system turn of 300 tokens), few_shot (a shared system turn, then the
shots of one of eight groups, then the row), uneven (no system turn; the answer ends at a different length for each
row). Each is decoded greedily in float32 by the loop, by `model.generate` over padded batches (batched), and by
evaluate.generation (ours); the rows that do not get the loop's tokens are counted. ratio: of shared_prompt, rows a
second over the loop's. `--rounds` times each that often and takes the median.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench import machine, versions
from bench.workloads import POLICY, banking, labels, spaced
from shoestring.records import Message, Prompt

PROMPT_TOKENS = 300
NUM_GROUPS, NUM_SHOTS = 8, 8
MAX_NEW_TOKENS = 24
BATCH_ROWS = 16  # of the batched peer


def load(model: str) -> Any:
    """A generator over the model in float32, one thread."""
    from shoestring.evaluate.generation import load_generator
    from shoestring.records import Device

    device = Device("cpu", "bench", 8 << 30, 1, "float32", "outputs are compared exactly")
    return load_generator(model, device=device, max_new_tokens=MAX_NEW_TOKENS)


def system_turn(generator: Any) -> Message:
    """A policy of PROMPT_TOKENS tokens, template included: as many labels as that takes, then words."""
    names = labels()

    def turn(count: int) -> Message:
        return Message("system", POLICY + ", ".join(names[:count]) + ".")

    count = next(n for n in range(1, len(names)) if generator.count_tokens([turn(n + 1)]) > PROMPT_TOKENS)
    return turn(count)


def shared_prompt(generator: Any, texts: list[tuple[str, str]]) -> list[Prompt]:
    """One system turn over every row."""
    system = system_turn(generator)
    return [(system, Message("user", text)) for text, _ in texts]


def few_shot(generator: Any, texts: list[tuple[str, str]]) -> list[Prompt]:
    """Two levels of common beginnings: a system turn for all and the shots of a group; rows come mixed."""
    system, pool = Message("system", "Name what the customer wants."), banking("train")
    rng = random.Random(0)
    groups = []
    for _ in range(NUM_GROUPS):
        shots = rng.sample(pool, NUM_SHOTS)
        groups.append([turn for text, label in shots for turn in (Message("user", text), Message("assistant", label))])
    return [(system, *groups[i % NUM_GROUPS], Message("user", text)) for i, (text, _) in enumerate(texts)]


def uneven(generator: Any, texts: list[tuple[str, str]]) -> list[Prompt]:
    """Rows that share only the template."""
    return [(Message("user", text),) for text, _ in texts]


SCENARIOS: dict[str, Callable[[Any, list[tuple[str, str]]], list[Prompt]]] = {
    "shared_prompt": shared_prompt, "few_shot": few_shot, "uneven": uneven,
}  # fmt: skip


def loop(generator: Any, prompts: list[list[int]], size: int = 1) -> list[list[int]]:
    """New tokens by transformers' generate, size rows at a time, left padded."""
    import torch

    pad = generator.tokenizer.pad_token_id
    answers = []
    for start in range(0, len(prompts), size):
        rows = prompts[start : start + size]
        longest = max(map(len, rows))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        out = generator.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=generator.max_new_tokens,
            eos_token_id=generator.stop_ids, pad_token_id=pad,
        )  # fmt: skip
        answers += [ended(row, generator.stop_ids) for row in out[:, longest:].tolist()]
    return answers


def ended(tokens: list[int], stop_ids: list[int]) -> list[int]:
    """The tokens up to and with the first stop."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in stop_ids), tokens)


def stops_of_many_lengths(generator: Any, ids: list[list[int]]) -> list[int]:
    """The end tokens and those of the commonest tokens that let answers end at the most different lengths."""
    answers = loop(generator, ids[:32])
    places = {t: {row.index(t) for row in answers if t in row} for t in {t for row in answers for t in row}}
    return [*generator.stop_ids, max(places, key=lambda t: (len(places[t]), t))]


def measure(name: str, generator: Any, num_rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of the three ways on one scenario, and how many rows differ from the loop's tokens."""
    from shoestring.train.base import encode_prompt

    prompts = SCENARIOS[name](generator, spaced(banking("test"), num_rows))
    ids = [encode_prompt(generator.tokenizer, prompt) for prompt in prompts]
    plain_stops = generator.stop_ids
    if name == "uneven":
        generator.stop_ids = stops_of_many_lengths(generator, ids)
    ways: dict[str, Callable[[], list[Any]]] = {
        "ours": lambda: generator.generate(prompts),
        "loop": lambda: loop(generator, ids),
        "batched": lambda: loop(generator, ids, BATCH_ROWS),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[Any]] = {}
    generator.generate(prompts[:4])
    for _ in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            answers[way] = run()
            seconds[way].append(time.perf_counter() - started)
    generator.stop_ids = plain_stops
    wanted = [generator.tokenizer.decode(row, skip_special_tokens=True) for row in answers["loop"]]
    texts = {
        "ours": [completion.text for completion in answers["ours"]],
        "batched": [generator.tokenizer.decode(row, skip_special_tokens=True) for row in answers["batched"]],
    }
    rate = {way: num_rows / statistics.median(taken) for way, taken in seconds.items()}
    return {
        "num_rows": num_rows,
        "prompt_tokens_mean": statistics.mean(map(len, ids)),
        "answer_tokens_mean": statistics.mean(map(len, answers["loop"])),
        "rows_per_s": rate,
        "ratio": rate["ours"] / rate["loop"],
        "ratio_vs_batched": rate["ours"] / rate["batched"],
        "rows_unlike_loop": {way: sum(a != b for a, b in zip(texts[way], wanted, strict=True)) for way in texts},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="shoestring-3m")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    generator = load(options.model)
    scenarios = {name: measure(name, generator, options.rows, options.rounds) for name in SCENARIOS}
    result = {
        "bench": "eval_speed",
        "ratio": scenarios["shared_prompt"]["ratio"],
        "model": options.model,
        "rounds": options.rounds,
        "scenarios": scenarios,
        "machine": machine(),
        "versions": versions(),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, found in scenarios.items():
        print(f"{name}: {found['ratio']:.1f} times the loop, {found['ratio_vs_batched']:.1f} times padded batches; "
              f"rows unlike the loop's: {found['rows_unlike_loop']}")  # fmt: skip


if __name__ == "__main__":
    main()
