"""What a synthesis will cost, before anything is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...records import Estimate, Message
from .asking import Teacher
from .calls import commonest_tools
from .make import MAX_OVERSHOOT, Candidate, Maker
from .texts import Text

CHARS_PER_TOKEN = 4  # English prose under current tokenizers, about
EXPECTED_KEPT_FRAC = 0.7  # until a synthesis has been measured
UNKNOWN_CHARS = 240  # of an input or an answer where no seed shows one
JSON_CHARS = 40  # around one example of a reply


@dataclass(frozen=True)
class Prediction:
    """Requests and dollars, low to high: every example kept; as expected; and asking to the end of patience."""

    num_requests: Estimate
    cost_usd: Estimate
    first_prompt: tuple[Message, ...]


def predict(maker: Maker, teacher: Teacher, num_rows: int, mode: str, texts: Sequence[Text]) -> Prediction:
    """Requests and list-price dollars of making num_rows."""
    task = maker.task
    answer_chars = _mean([len(e.completion) for e in task.train])
    is_inputs = mode == "inputs"
    input_chars = _mean([len(t.text) for t in texts] if is_inputs else [len(e.user_text) for e in task.train])
    some_input = texts[0].text if is_inputs else "x" * round(input_chars)
    passage = texts[0].text if texts and not is_inputs else ""
    answer = maker.answer_request(Candidate(some_input, {}, passage, tools=commonest_tools(task.train)))
    answer_usd = teacher.cost_usd(_chars(answer) / CHARS_PER_TOKEN, answer_chars / CHARS_PER_TOKEN)
    if is_inputs:
        num_rows = min(num_rows, len(texts))
        low, high = num_rows * task.agree, num_rows * task.samples
        requests = Estimate((low + high) / 2, low, high)
        highest_usd = high * teacher.at_most_usd(answer)
        return Prediction(requests, Estimate(requests.value * answer_usd, low * answer_usd, highest_usd), answer)
    num_items = maker.num_items(num_rows)
    prompts = [prompt for prompt, _ in maker.pair_requests(0, 8, num_items, texts)]
    reply_chars = num_items * (input_chars + answer_chars + JSON_CHARS)
    pair_usd = teacher.cost_usd(_mean([_chars(p) for p in prompts]) / CHARS_PER_TOKEN, reply_chars / CHARS_PER_TOKEN)
    best = math.ceil(num_rows / num_items)
    expected, most = best / EXPECTED_KEPT_FRAC, MAX_OVERSHOOT * best
    further = num_items * (task.agree - 1)  # answers to the examples of a request
    most_further = num_items * (task.samples - 1)
    return Prediction(
        Estimate(expected * (1 + further), best * (1 + further), most * (1 + most_further)),
        Estimate(
            expected * (pair_usd + further * answer_usd),
            best * (pair_usd + further * answer_usd),
            most * (teacher.at_most_usd(prompts[0]) + most_further * teacher.at_most_usd(answer)),
        ),
        prompts[0],
    )


def _chars(prompt: Sequence[Message]) -> int:
    return sum(len(m.text) for m in prompt)


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else UNKNOWN_CHARS
