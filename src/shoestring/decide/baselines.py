"""Prompting arms: the instruction, zero-shot, few-shot and nearest-example prompts, and measuring one arm."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..config import TaskConfig
from ..evaluate.score import score_arm
from ..messages import Example, Message, Prompt, all_tools, answered_turns, split_tools, with_tools
from ..records import ArmScore, Generate, Progress, no_progress
from .retrieval import NEAR_OVERLAP, Retriever, word_overlap, words

# Keys rarer than this in the training answers are not named in the instruction.
MIN_KEY_FRAC = 0.05
# More keys than this say less than an example does.
MAX_KEYS = 60
GENERIC_INSTRUCTIONS = {
    "generate": "Write the answer to the request. Output the answer only.",
    "chat": "You are a helpful assistant.",
    "sql": "Translate the request to one SQL query. Output the query only.",
    "math": "Solve the problem step by step. End with the final number on a line of its own, after '#### '.",
}

CountTokens = Callable[[Sequence[Message]], int]


def instruction_for(task: TaskConfig, train: Sequence[Example], labels: tuple[str, ...] | None) -> str:
    """What the model is told in prompting arms: the task's own instruction, else derived from the data.

    Derived from training rows and the label set alone, never from held-out rows.
    """
    if task.instruction.strip():
        return task.instruction
    if task.kind == "classify":
        names = labels or tuple(sorted({example.completion.strip() for example in train}))
        return f"Classify the text. Answer with exactly one of: {', '.join(names)}"
    if task.kind == "extract":
        keys = ", ".join(_frequent_keys(train))
        return (
            f"Extract the record from the text as one JSON object. Output JSON only.{f' Keys: {keys}' if keys else ''}"
        )
    return GENERIC_INSTRUCTIONS[task.kind]


def _frequent_keys(train: Sequence[Example]) -> list[str]:
    """Dotted keys of the training answers, in order of first appearance, those in at least MIN_KEY_FRAC of them."""
    counts: Counter[str] = Counter()
    for example in train:
        try:
            answer = json.loads(example.completion)
        except (ValueError, RecursionError):
            continue
        counts.update(dict.fromkeys(_key_paths(answer, ""), 1))
    frequent = [key for key, count in counts.items() if count >= MIN_KEY_FRAC * len(train)]
    return sorted(frequent, key=lambda key: -counts[key])[:MAX_KEYS]


def _key_paths(value: Any, prefix: str) -> list[str]:
    if isinstance(value, dict):
        paths: list[str] = []
        for key, inner in value.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            nested = _key_paths(inner, path)
            paths += nested if nested else [path]
        return paths
    if isinstance(value, list):
        return [path for item in value for path in _key_paths(item, f"{prefix}[]")]
    return []


def _with_instruction(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt with the instruction in its system message, before what stands there already."""
    tools, turns = split_tools(prompt)
    if not instruction:
        return prompt
    if turns and turns[0].role == "system":
        if instruction in turns[0].content:
            return prompt
        turns = (Message("system", f"{instruction}\n\n{turns[0].content}"), *turns[1:])
    else:
        turns = (Message("system", instruction), *turns)
    return with_tools(turns, tools)


def zero_shot_prompts(examples: Sequence[Example], instruction: str) -> list[Prompt]:
    """Each row's prompt under the instruction."""
    return [_with_instruction(example.request, instruction) for example in examples]


def few_shot_prompts(
    examples: Sequence[Example],
    train: Sequence[Example],
    instruction: str,
    num_shots: int,
    count_tokens: CountTokens,
    context_tokens: int,
    max_new_tokens: int,
    seed: int,
) -> tuple[list[Prompt], int]:
    """Each row's prompt after the same few training examples, and how many were used.

    Shots are user and assistant turns between the system message and the row's own turns; their tools are declared
    beside the row's. The last ones are left out, for all rows alike, until the longest prompt and its answer fit the
    context; 0 where not one fits, which does not say that the bare prompt does.
    """
    shots = choose_shots(train, num_shots, seed, exclude=frozenset(example.id for example in examples))
    bare = zero_shot_prompts(examples, instruction)
    room = context_tokens - max_new_tokens
    # The longest bare prompt decides: shots add the same tokens to each.
    longest = max(range(len(bare)), key=lambda i: count_tokens(bare[i]), default=0)
    while bare and shots and count_tokens(_with_shots(bare[longest], shots)) > room:
        shots = shots[:-1]
    return [_with_shots(prompt, shots) for prompt in bare], len(shots)


def nearest_prompts(
    examples: Sequence[Example],
    train: Sequence[Example],
    retriever: Retriever,
    instruction: str,
    num_shots: int,
    count_tokens: CountTokens,
    context_tokens: int,
    max_new_tokens: int,
) -> tuple[list[Prompt], dict[str, Any]]:
    """Each row's prompt after the training examples most like it, the likest last; and what they are, in numbers.

    retriever: over the user_text of train. The least alike are left out until prompt and answer fit the context. A row
    of examples is never a shot; how many rows have a shot that says nearly the same is told (rows_with_near_shot).
    """
    held_out = frozenset(example.id for example in examples)
    found = retriever.search([example.user_text for example in examples], num_shots + len(examples))
    room = context_tokens - max_new_tokens
    prompts, nums, num_near = [], [], 0
    for example, bare, places in zip(examples, zero_shot_prompts(examples, instruction), found, strict=True):
        shots = [train[i] for i in places if train[i].id not in held_out][:num_shots]
        while shots and count_tokens(_with_shots(bare, shots[::-1])) > room:
            shots.pop()
        asked = frozenset(words(example.user_text))
        num_near += any(word_overlap(asked, frozenset(words(s.user_text))) >= NEAR_OVERLAP for s in shots)
        prompts.append(_with_shots(bare, shots[::-1]))
        nums.append(len(shots))
    mean = sum(nums) / max(1, len(nums))
    return prompts, {"num_shots": max(nums, default=0), "mean_shots": mean, "rows_with_near_shot": num_near}


def _with_shots(prompt: Prompt, shots: Sequence[Example]) -> Prompt:
    tools, own = split_tools(prompt)
    system = own[:1] if own and own[0].role == "system" else ()
    turns = [
        turn for shot in shots for turn in (*(m for m in shot.prompt if m.role != "system"), *answered_turns(shot))
    ]
    return with_tools((*system, *turns, *own[len(system) :]), all_tools([tools, *(shot.tools for shot in shots)]))


def choose_shots(
    train: Sequence[Example], num_shots: int, seed: int, exclude: frozenset[str] = frozenset()
) -> list[Example]:
    """Training rows for a few-shot prompt, the same for the same seed.

    Answers that repeat (labels) take turns, the commonest first; where answers are all different,
    rows as unlike each other as possible, of no more than median length.
    """
    rows = [row for row in train if row.id not in exclude]
    rows.sort(key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).digest())
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.completion.strip(), []).append(row)
    if len(groups) <= len(rows) / 2:
        turns = sorted(groups.values(), key=len, reverse=True)
        by_turn = [group[k] for k in range(max(map(len, turns), default=0)) for group in turns if k < len(group)]
        chosen = by_turn[:num_shots]
    else:
        chosen = _diverse(rows, num_shots)
    random.Random(seed).shuffle(chosen)
    return chosen


def _diverse(rows: list[Example], num_shots: int) -> list[Example]:
    """Farthest-first by Jaccard distance of words, among up to 500 rows of at most median length."""
    median = sorted(len(row.user_text) + len(row.completion) for row in rows)[len(rows) // 2]
    pool = [row for row in rows if len(row.user_text) + len(row.completion) <= median][:500]
    said = [frozenset((row.user_text + " " + row.completion).casefold().split()) for row in pool]
    chosen: list[int] = []
    nearest = [0.0] * len(pool)
    while len(chosen) < min(num_shots, len(pool)):
        best = min((i for i in range(len(pool)) if i not in chosen), key=lambda i: (nearest[i], i))
        chosen.append(best)
        for i, other in enumerate(said):
            nearest[i] = max(nearest[i], word_overlap(said[best], other))
    return [pool[i] for i in chosen]


def run_arm(
    *,
    arm: str,
    kind: str,
    model: str,
    examples: Sequence[Example],
    prompts: list[Prompt],
    generate: Generate,
    task: TaskConfig,
    labels: tuple[str, ...] | None,
    price_usd_per_hour: float = 0.0,
    progress: Progress = no_progress,
    seed: int = 0,
    details: dict[str, Any] | None = None,
) -> ArmScore:
    """Generate and score one arm; cost_usd is that of the completions plus wall time at the machine's price."""
    assert len(prompts) == len(examples), (len(prompts), len(examples))
    started = time.monotonic()
    completions = generate(prompts, progress)
    wall_s = time.monotonic() - started
    return score_arm(
        arm=arm,
        kind=kind,
        model=model,
        task=task,
        examples=examples,
        completions=completions,
        labels=labels,
        wall_s=wall_s,
        seed=seed,
        details=details,
        price_usd_per_hour=price_usd_per_hour,
    )
