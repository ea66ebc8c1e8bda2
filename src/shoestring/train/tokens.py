"""How text becomes tokens.

Prompts and training rows are tokenised by the same code, so that training sees what generation sees:
ids = prompt with the generation prompt + answer + end token, loss on the part after the prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError
from ..messages import Example, Message, split_tools
from .locate import first_line, hub_options, resolve_model
from .tools import PROBE_CALL, PROBE_TOOLS, TemplateRefused, is_own_form, own_text, render

# For tokenizers without a chat template (base models): one heading a turn, end token after each answer.
PLAIN_TEMPLATE = (
    "{{ bos }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Assistant:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
OTHER_TEMPLATE = "give another model, or set a plain chat_template in its tokenizer_config.json"
# Names under which vocabularies keep a token for padding, in order of preference.
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|endoftext|>", "<unk>")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a row; the first num_prompt_tokens bear no loss, the rest (end token included) do."""

    ids: list[int]
    num_prompt_tokens: int


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer, right-padding, with a chat template and a pad token that is not the end token.

    Raises: ModelError.
    """
    from transformers import AutoTokenizer

    path = resolve_model(name)
    options = hub_options(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer of {name!r} cannot be loaded: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name!r} names no end token (eos_token); set one in its tokenizer_config.json"
        )
    if not tokenizer.chat_template:
        starts = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = PLAIN_TEMPLATE.replace("{{ bos }}", "{{ bos_token }}" if starts else "")
    end = end_token_id(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (end, tokenizer.eos_token_id):
        tokenizer.pad_token = _free_pad_token(tokenizer, {end, tokenizer.eos_token_id})
    tokenizer.padding_side = "right"
    return tokenizer


def tokenizer_print(tokenizer: Any) -> str:
    """Equal for tokenizers that make the same ids of the same rows, whatever model they came with."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    rules = core.to_str() if core is not None else json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()])
    return hashlib.sha256(f"{rules}{tokenizer.chat_template}".encode()).hexdigest()


def _free_pad_token(tokenizer: Any, taken: set[int]) -> str:
    """A token of the vocabulary that can pad: a named one, a reserved one, else the longest, which no text holds.

    No token is added, so the embedding keeps its size.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    free = {token: index for token, index in vocabulary.items() if index not in taken}
    for name in PAD_NAMES:
        if name in free:
            return name
    reserved = sorted(t for t in free if t in tokenizer.added_tokens_encoder and ("reserved" in t or "unused" in t))
    return reserved[-1] if reserved else max(free, key=lambda token: (len(token), -free[token]))


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of rendered text; the template has written every special token already, so none is added."""
    return tokenizer(text, add_special_tokens=False).input_ids


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of the conversation so far, declarations included, up to where the assistant's answer begins.

    Raises: TemplateRefused.
    """
    tools, turns = split_tools(messages)
    return _ids(tokenizer, render(tokenizer, turns, tools, generation_prompt=True))


def _answer_text(tokenizer: Any, example: Example) -> tuple[str, str, str]:
    """Rendered prompt, what the template puts between it and the end of the answer, and what it puts after.

    Raises: TemplateRefused when the template rewrites the history or the answer, or cannot render them.
    """
    start, stop = example.answer_span
    answer = example.messages[start:stop]
    if not answer or any(m.role != "assistant" for m in answer):
        raise TemplateRefused(
            f"the answer must be assistant turns only, not {[m.role for m in answer]}; "
            "split the conversation into one row per answer"
        )
    prompt = render(tokenizer, example.prompt, example.tools, generation_prompt=True)
    full = render(tokenizer, example.messages[:stop], example.tools, generation_prompt=False)
    if not full.startswith(prompt):
        raise TemplateRefused(
            f"the chat template rewrites the conversation once the answer is there (prompt ends {prompt[-40:]!r}), so "
            "training would not see what generation sees; give a model without that template, or set a plain "
            "chat_template in its tokenizer_config.json"
        )
    rest = full[len(prompt) :]
    last = answer[-1]
    if last.tool_calls and not is_own_form(tokenizer, example.tools):
        end = _end_of_calls(tokenizer, example, full, rest)
        return prompt, rest[:end], rest[end:]
    said = own_text(last)
    for text in (said, said.strip()):  # some templates strip the content
        at = rest.rfind(text)
        if at >= 0 and text:
            return prompt, rest[: at + len(text)], rest[at + len(text) :]
    raise TemplateRefused(f"the chat template does not carry the answer {said[:60]!r} unchanged; {OTHER_TEMPLATE}")


def _end_of_calls(tokenizer: Any, example: Example, full: str, rest: str) -> int:
    """Where in rest an answer of tool calls ends: at the end token after what another last call leaves unchanged.

    Raises: TemplateRefused where the template leaves out part of the answer.
    """
    *before, last = example.messages[: example.answer_span[1]]
    for text in (last.content.strip(), *(call.name for call in last.tool_calls)):
        if text not in rest:
            raise TemplateRefused(f"the chat template leaves out {text[:60]!r} beside the tool calls; {OTHER_TEMPLATE}")
    other = replace(last, tool_calls=(*last.tool_calls[:-1], PROBE_CALL))
    altered = render(tokenizer, [*before, other], example.tools, generation_prompt=False)
    pairs = zip(reversed(full), reversed(altered), strict=False)
    same = full[len(full) - next((at for at, (a, b) in enumerate(pairs) if a != b), 0) :]
    if not same or len(same) > len(rest):
        raise TemplateRefused(f"the chat template does not show each tool call; {OTHER_TEMPLATE}")
    start = len(rest) - len(same)
    at = same.find(tokenizer.convert_ids_to_tokens(end_token_id(tokenizer)))
    if at >= 0:
        return start + at
    # After calls another token ends the turn (gpt-oss, Gemma 4), or none does.
    last = tokenizer.added_tokens_decoder.get(_ids(tokenizer, same)[-1])
    return len(rest) - (len(str(last)) if last is not None else 0)


def encode_example(tokenizer: Any, example: Example) -> Encoded:
    """Ids of prompt + answer + end token, loss on what follows the prompt.

    Raises: TemplateRefused when the chat template cannot carry the row.
    """
    try:
        prompt, answer, tail = _answer_text(tokenizer, example)
    except TemplateRefused as error:
        raise TemplateRefused(f"row {example.source}:{example.line}: {error}") from error
    prompt_ids, full_ids = _ids(tokenizer, prompt), _ids(tokenizer, prompt + answer)
    # Token by token where the prompt is a prefix; else the boundary merged, and generation would not see that.
    aligned = full_ids[: len(prompt_ids)] == prompt_ids
    answer_ids = full_ids[len(prompt_ids) :] if aligned else _ids(tokenizer, answer)
    return Encoded([*prompt_ids, *answer_ids, _end_in(tokenizer, tail)], len(prompt_ids))


def _end_in(tokenizer: Any, tail: str) -> int:
    """The token that ends a turn: the first special token after the answer, else the tokenizer's end token."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return (
        next((i for i in _ids(tokenizer, tail) if i in special), tokenizer.eos_token_id)
        if tail
        else tokenizer.eos_token_id
    )


def end_token_id(tokenizer: Any) -> int:
    """The id with which this chat template ends an answer; generation must stop at it."""
    probe = Example((Message("user", "a"), Message("assistant", "b")), (1, 2), source="template probe")
    return _end_in(tokenizer, _answer_text(tokenizer, probe)[2])


def end_token_ids(tokenizer: Any) -> set[int]:
    """The ids with which this chat template ends an answer: that of text, and of tool calls where it has another."""
    ends = {end_token_id(tokenizer)}
    if not is_own_form(tokenizer, PROBE_TOOLS):
        call = replace(PROBE_CALL, arguments='{"a": "b"}')
        probe = Example((Message("user", "a"), Message("assistant", "", (call,))), (1, 2), tools=PROBE_TOOLS)
        with contextlib.suppress(TemplateRefused):
            ends.add(encode_example(tokenizer, probe).ids[-1])
    return ends


def stop_token_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Every id at which generation stops: the template's, the tokenizer's, and the model's own end tokens."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own_ids = own if isinstance(own, list) else [own]
    return sorted({*end_token_ids(tokenizer), tokenizer.eos_token_id, *own_ids} - {None})


def count_lengths(tokenizer: Any, examples: Sequence[Example]) -> list[tuple[int, int]]:
    """(prompt tokens, answer tokens with the end token) of each row. Raises: TemplateRefused."""
    encoded = (encode_example(tokenizer, example) for example in examples)
    return [(e.num_prompt_tokens, len(e.ids) - e.num_prompt_tokens) for e in encoded]


def lengths_or_refusals(tokenizer: Any, examples: Sequence[Example]) -> list[tuple[int, int] | str]:
    """As count_lengths; for a row that the chat template cannot carry, why."""
    found: list[tuple[int, int] | str] = []
    for example in examples:
        try:
            found += count_lengths(tokenizer, [example])
        except TemplateRefused as error:
            found.append(str(error.__cause__ or error))
    return found
