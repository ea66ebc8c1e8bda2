"""What must hold before a token is paid for: each gate names one way in which fine-tuning fails without a word.

The usual signs (a falling loss, no error) are there in all of these cases. A gate says what it saw, or what is wrong
with the row and the tokens, and what to do. Gates here look at rows and settings; those of probe.py ask the model.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..config import PREFERENCES
from ..messages import with_tools
from ..records import Example
from .loss import causal
from .objective import desired_of, sides
from .setup import SetUp
from .tokens import Encoded, encode_prompt, end_token_id, end_token_ids

REFUSE, WARN, OK = "refuse", "warn", "ok"
# Rates outside these multiples of the derived one either do nothing or diverge.
RATE_BAND = (1 / 200, 20.0)
RATE_BAND_FULL = (1 / 200, 6.0)  # the rate of an adapter, ten times as high, lies outside
FEW_STEPS = 10
SERVED_ROWS = 500  # prompts that are rendered once more, as serving does
SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Finding:
    """What one gate saw. level: ok, warn, refuse; remedy: the next step, empty where all is well."""

    gate: str
    level: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """look(set-up) gives what is wrong, or "" and what was seen."""

    name: str
    level: str
    remedy: str
    look: Callable[[SetUp], tuple[str, str]]

    def finding(self, ready: SetUp) -> Finding:
        return judged(self.name, self.level, self.remedy, *self.look(ready))


def judged(gate: str, level: str, remedy: str, wrong: str, seen: str) -> Finding:
    """The finding of a gate: what is wrong, or "" and what was seen."""
    return Finding(gate, level, wrong, remedy) if wrong else Finding(gate, OK, seen)


def rows_of(ready: SetUp) -> Iterable[tuple[Example, Encoded]]:
    """Each training row with its path, a pair's second one with the answer that lost."""
    for example, item in zip(ready.train, ready.learned.items, strict=True):
        yield from zip(sides(example, ready.settings.objective), item, strict=True)


def shown(tokenizer: Any, ids: list[int]) -> str:
    """Tokens as text, the end of a long one."""
    text = tokenizer.decode(ids)
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"...{text[-SHOWN_CHARACTERS:]}")


def _first(
    ready: SetUp, wrong: Callable[[Example, Encoded], str], seen: str, num_sampled: int | None = None
) -> tuple[str, str]:
    """The first row that `wrong` has words for, and how many there are; of num_sampled rows, evenly spaced."""
    rows = list(rows_of(ready))
    looked = rows[:: max(1, len(rows) // (num_sampled or len(rows)))]
    found = [(example, words) for example, path in looked if (words := wrong(example, path))]
    if not found:
        return "", seen
    example, words = found[0]
    return f"{len(found)} of {len(looked)} rows, first {example.source}:{example.line}: {words}", ""


def _supervised(path: Encoded) -> list[int]:
    return path.ids[max(path.num_prompt_tokens, 1) :]


def _mask(ready: SetUp) -> tuple[str, str]:
    def wrong(example: Example, path: Encoded) -> str:
        return "" if len(_supervised(path)) > 1 else f"no answer token bears loss in {shown(ready.tokenizer, path.ids)}"

    share = ready.learned.weight(range(len(ready.train))) if ready.settings.objective == "sft" else None
    counted = f"{share:,} answer tokens bear loss" if share else "every row has answer tokens that bear loss"
    return _first(
        ready,
        wrong,
        f"{counted}; the first row teaches {shown(ready.tokenizer, _supervised(ready.learned.items[0][0]))}",
    )


def _prompt_bears_loss(ready: SetUp) -> tuple[str, str]:
    def wrong(example: Example, path: Encoded) -> str:
        asked = any(message.content for message in example.prompt)
        return f"the prompt {example.user_text[:60]!r} bears loss" if asked and path.num_prompt_tokens < 2 else ""

    return _first(ready, wrong, "no prompt token bears loss")


def _end_learned(ready: SetUp) -> tuple[str, str]:
    ends = end_token_ids(ready.tokenizer)
    named = " or ".join(repr(ready.tokenizer.decode([end])) for end in sorted(ends))

    def wrong(example: Example, path: Encoded) -> str:
        return "" if path.ids[-1] in ends else f"ends with {shown(ready.tokenizer, path.ids[-3:])}, not with {named}"

    return _first(ready, wrong, f"every answer ends with {named}")


def _end_inside(ready: SetUp) -> tuple[str, str]:
    ends = end_token_ids(ready.tokenizer)

    def wrong(example: Example, path: Encoded) -> str:
        one_turn = example.answer_span[1] - example.answer_span[0] == 1 and not example.messages[-1].tool_calls
        inside = one_turn and not ends.isdisjoint(_supervised(path)[:-1])
        return f"the answer {example.completion[:60]!r} holds the end token itself" if inside else ""

    return _first(ready, wrong, "no answer holds the end token before its end")


def _answer_kept(ready: SetUp) -> tuple[str, str]:
    def wrong(example: Example, path: Encoded) -> str:
        if any(m.tool_calls for m in example.messages[slice(*example.answer_span)]):
            return ""  # written as the template has it
        got, wanted = (
            ready.tokenizer.decode(_supervised(path)[:-1]),
            example.messages[example.answer_span[1] - 1].content,
        )
        return "" if _plain(wanted) in _plain(got) else f"the answer is {wanted[-60:]!r}, the tokens say {got[-60:]!r}"

    return _first(ready, wrong, "every answer is in its tokens, whole")


def _plain(text: str) -> str:
    """Text without what tokenizers may change: width, case and runs of spaces."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _start_doubled(ready: SetUp) -> tuple[str, str]:
    start = ready.tokenizer.bos_token_id

    def wrong(example: Example, path: Encoded) -> str:
        return f"begins {shown(ready.tokenizer, path.ids[:4])}" if path.ids[:2] == [start, start] else ""

    return ("", "this tokenizer has no start token") if start is None else _first(ready, wrong, "one start token a row")


def _start_missing(ready: SetUp) -> tuple[str, str]:
    start = ready.tokenizer.bos_token_id
    if start is None or ready.tokenizer("a").input_ids[:1] != [start]:
        return "", "this tokenizer adds no start token of its own"
    wrong = _first(ready, lambda example, path: "" if path.ids[0] == start else "has no start token", "")[0]
    return wrong, "every row begins with the start token"


def _prompt_as_served(ready: SetUp) -> tuple[str, str]:
    def wrong(example: Example, path: Encoded) -> str:
        served = encode_prompt(ready.tokenizer, with_tools(example.prompt, example.tools))
        own = path.ids[: path.num_prompt_tokens]
        if served == own:
            return ""
        return f"serving sends {shown(ready.tokenizer, served)}, training saw {shown(ready.tokenizer, own)}"

    return _first(ready, wrong, "training prompts are, token for token, those that serving sends", SERVED_ROWS)


def _pad_apart(ready: SetUp) -> tuple[str, str]:
    pad, end = ready.tokenizer.pad_token_id, end_token_id(ready.tokenizer)
    if pad is None or pad == end:
        return f"pad and end token are both {end} ({ready.tokenizer.decode([end])!r})", ""
    return "", f"pad {ready.tokenizer.decode([pad])!r} and end {ready.tokenizer.decode([end])!r} differ"


def _stops_where_served(ready: SetUp) -> tuple[str, str]:
    end = end_token_id(ready.tokenizer)
    own = getattr(getattr(causal(ready.tuned), "generation_config", None), "eos_token_id", None)
    known = {ready.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    named = ready.tokenizer.decode([end])
    if end not in known:
        return f"answers end with {named!r}, and neither eos_token nor generation_config.json names it", ""
    return "", f"servers stop at {named!r}"


def _template_fixed(ready: SetUp) -> tuple[str, str]:
    varies = "strftime_now" in str(ready.tokenizer.chat_template)
    return (
        ("the chat template writes today's date into prompts", "")
        if varies
        else ("", "the template is the same each day")
    )


def _ids_inside(ready: SetUp) -> tuple[str, str]:
    rows = ready.tuned.get_input_embeddings().weight.shape[0]
    highest = max(max(path.ids) for item in ready.learned.items for path in item)
    if highest >= rows:
        return f"token {highest} ({ready.tokenizer.decode([highest])!r}) has no row in the embedding of {rows}", ""
    return "", f"{len(ready.tokenizer):,} tokens, {rows:,} embedding rows"


def _fits_context(ready: SetUp) -> tuple[str, str]:
    config = ready.tuned.config
    context = getattr(config, "max_position_embeddings", None)
    longest = max(len(path.ids) for item in ready.learned.items for path in item)
    limit = min(n for n in (context, ready.settings.seq_len) if n)
    if longest > limit:
        return f"the longest row has {longest} tokens; seq_len is {ready.settings.seq_len}, the context {context}", ""
    return "", f"the longest row has {longest} of {limit} tokens"


def _rate(ready: SetUp) -> tuple[str, str]:
    from ..plan.settings import usual_learning_rate

    config = ready.tuned.config
    method = ready.settings.method
    usual = usual_learning_rate(config.model_type, config.hidden_size, ready.settings.objective, method)
    low, high = (usual * factor for factor in (RATE_BAND_FULL if method == "full" else RATE_BAND))
    rate = ready.settings.learning_rate
    if not low <= rate <= high:
        return (
            f"learning_rate is {rate:g}; usual for this model, objective and method: {method} is {usual:.2g} "
            f"({low:.1g} to {high:.1g})",
            "",
        )
    return "", f"learning_rate {rate:g}, usual {usual:.2g}"


def _enough_steps(ready: SetUp) -> tuple[str, str]:
    steps = len(ready.packing.schedule.steps)
    few = steps < FEW_STEPS
    return (f"{steps} optimizer steps in all", "") if few else ("", f"{steps:,} optimizer steps")


def _sides_differ(ready: SetUp) -> tuple[str, str]:
    if ready.settings.objective not in PREFERENCES:
        return "", "no pairs"
    desired: dict[tuple[int, ...], tuple[bool, Example]] = {}
    both = []
    for example, item in zip(ready.train, ready.learned.items, strict=True):
        if len(item) > 1 and item[0].ids == item[1].ids:
            both.append((example, example))
        elif ready.settings.objective == "kto":
            for flag, path in zip(desired_of(example), item, strict=True):
                before = desired.setdefault(tuple(path.ids), (flag, example))
                both += [] if before[0] == flag else [(example, before[1])]
    if both:
        mine, other = ((f"{e.source}:{e.line}") for e in both[0])
        with_ = "" if mine == other else f" and {other}"
        return f"{len(both)} answers are, token for token, both liked and not, first {mine}{with_}", ""
    return "", "no answer is both liked and not"


GATES = (
    Gate("answer_tokens_bear_loss", REFUSE, "give the rows answers; `shoestring curate` drops empty ones", _mask),
    Gate(
        "prompt_bears_no_loss",
        REFUSE,
        "check the model's chat_template: it must render a generation prompt",
        _prompt_bears_loss,
    ),
    Gate(
        "end_is_learned", REFUSE, "set a chat_template that ends the assistant's turn with the end token", _end_learned
    ),
    Gate("end_only_at_the_end", REFUSE, "take the end token's text out of the answers", _end_inside),
    Gate(
        "answers_are_whole",
        REFUSE,
        "raise train.seq_len, or set a chat_template that carries answers unchanged",
        _answer_kept,
    ),
    Gate(
        "one_start_token",
        REFUSE,
        "take the start token out of the chat_template, or set add_bos_token: false",
        _start_doubled,
    ),
    Gate("start_token_is_there", WARN, "set a chat_template that begins with the start token", _start_missing),
    Gate(
        "prompts_as_served",
        REFUSE,
        "serve and train with one chat_template: the one in tokenizer_config.json",
        _prompt_as_served,
    ),
    Gate("pad_is_not_end", REFUSE, "set another pad_token in tokenizer_config.json", _pad_apart),
    Gate(
        "servers_stop_there", WARN, "name the token under eos_token_id in generation_config.json", _stops_where_served
    ),
    Gate("template_is_fixed", WARN, "write a date into the chat_template, or leave it out", _template_fixed),
    Gate("tokens_have_embeddings", REFUSE, "use the tokenizer that belongs to this model", _ids_inside),
    Gate("rows_fit", REFUSE, "raise train.seq_len, or curate with this one", _fits_context),
    Gate("learning_rate_is_sane", REFUSE, "leave train.learning_rate out: it is derived from the model's width", _rate),
    Gate("enough_steps", WARN, "raise train.num_epochs, or lower train.batch_tokens", _enough_steps),
    Gate(
        "sides_differ", REFUSE, "leave out the pairs whose two answers are the same, or one of the rows", _sides_differ
    ),
)
