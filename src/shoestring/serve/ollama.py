"""A Modelfile for merged weights: the chat template as Ollama renders it, end tokens, and greedy decoding.

Ollama has a template language of its own (Go's text/template over .Messages). What a chat template writes around each
turn is found by rendering, put together again, and held against the template on other conversations; one that does
more (rewrites turns, numbers them, calls tools) is refused. Adapters in a Modelfile are going away, so none is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..files import write_whole
from ..messages import Message
from ..train.tokens import stop_token_ids
from ..train.tools import TemplateRefused, render

ROLES = ("system", "user", "assistant")
MAX_CONTEXT_TOKENS = 8192  # Ollama takes memory for all of it at once
# Texts that occur in no template, and do not change under trimming.
ASKED, TOLD, SAID = "qAzWsX1", "eDcRfV2", "tGbYhN3"


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chat template writes: at the start, without a system message, before and after each turn, at the end."""

    head: str
    no_system: str
    before: dict[str, str]
    after: dict[str, str]
    prompt: str

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation up to where the answer begins."""
        has_system = any(message.role == "system" for message in messages)
        turns = (self.before[m.role] + m.content + self.after[m.role] for m in messages)
        return self.head + ("" if has_system else self.no_system) + "".join(turns) + self.prompt

    def go_template(self, without: str = "") -> str:
        """The same for Go's text/template; without: a start token that llama.cpp adds by itself."""
        lines = [_said(self.head.removeprefix(without))]
        if self.no_system:
            lines.append(f"{{{{ if not .System }}}}{_said(self.no_system)}{{{{ end }}}}")
        turns = []
        for number, role in enumerate(ROLES):
            words = f'{"else if" if number else "if"} eq .Role "{role}"'
            turns.append(f"{{{{ {words} }}}}{_said(self.before[role])}{{{{ .Content }}}}{_said(self.after[role])}")
        lines.append(f"{{{{ range .Messages }}}}{''.join(turns)}{{{{ end }}}}{{{{ end }}}}")
        return "".join([*lines, _said(self.prompt)])


def _said(text: str) -> str:
    """Literal text as a Go action, so that no white space of the file itself is rendered."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def frame_of(tokenizer: Any) -> tuple[Frame, list[str]]:
    """The frame of a tokenizer's chat template, and notes on what Ollama does otherwise.

    Raises: ModelError where the template does more than frame turns.
    """
    user, system, answer = Message("user", ASKED), Message("system", TOLD), Message("assistant", SAID)
    try:
        alone, told = _rendered(tokenizer, [user]), _rendered(tokenizer, [system, user])
        longer = _rendered(tokenizer, [user, answer, user])
        head_told, between_told, _ = _split(told, TOLD, ASKED)
        start, answered, reasked, end = _split(longer, ASKED, SAID, ASKED)
        after_user = render(tokenizer, [user], "", generation_prompt=False).partition(ASKED)[2]
        before_user = _common_end(start, reasked)
        after_assistant = reasked.removesuffix(before_user)
        if not between_told.endswith(before_user) or not all(t.startswith(after_user) for t in (answered, end)):
            raise _refused("it writes other words around a turn in another place")
        after_system = between_told.removesuffix(before_user)
        start = start.removesuffix(before_user)
        head = _common_start(start, head_told)
        if not alone.startswith(start):
            raise _refused("a conversation's start depends on its length")
    except TemplateRefused as error:
        raise _refused(str(error)) from error
    frame = Frame(
        head=head,
        no_system=start.removeprefix(head),
        before={
            "system": head_told.removeprefix(head),
            "user": before_user,
            "assistant": answered.removeprefix(after_user),
        },
        after={"system": after_system, "user": after_user, "assistant": after_assistant},
        prompt=end.removeprefix(after_user),
    )
    return frame, _proven(frame, tokenizer)


def _proven(frame: Frame, tokenizer: Any) -> list[str]:
    """Holds the frame against the template on conversations it was not made from. Raises: ModelError."""
    plain = [
        [Message("user", "Name a colour.")],
        [Message("system", "Be brief: one word."), Message("user", "And 12 + 30?")],
        [Message("user", "a\n\nb"), Message("assistant", '{"x": [1, 2]}'), Message("user", "c"),
         Message("assistant", "d"), Message("user", "What's “that”, naïve 東京 🙂?")],
        [Message("system", "s"), Message("user", "u"), Message("assistant", "v"), Message("user", "w")],
    ]  # fmt: skip
    for messages in plain:
        if frame.render(messages) != _rendered(tokenizer, messages):
            raise _refused(f"{len(messages)} turns are rendered otherwise than turn by turn")
    spaced = [Message("user", "  a  \n"), Message("assistant", " b "), Message("user", "c\n")]
    if frame.render(spaced) == _rendered(tokenizer, spaced):
        return []
    return [
        "the chat template strips white space around a turn's text, Ollama does not: send texts without it, or answers "
        "may differ from those evaluated"
    ]


def _refused(why: str) -> ModelError:
    return ModelError(
        f"the chat template cannot be written for Ollama: {why}. Serve the GGUF file with llama-server --jinja, which "
        "renders the template itself: shoestring export RUN --to gguf"
    )


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    return render(tokenizer, messages, "", generation_prompt=True)


def _split(text: str, *marks: str) -> list[str]:
    """What stands before, between and behind the marks, in their order. Raises: ModelError."""
    parts, rest = [], text
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise _refused(f"it leaves out a turn's text, or changes their order ({text[:80]!r})")
        parts.append(before)
    if any(mark in rest for mark in marks):
        raise _refused("it writes a turn's text twice")
    return [*parts, rest]


def _common_start(a: str, b: str) -> str:
    size = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:size]


def _common_end(a: str, b: str) -> str:
    return _common_start(a[::-1], b[::-1])[::-1]


def write_modelfile(
    folder: Path, gguf: str, tokenizer: Any, *, system: str = "", context_tokens: int = 0, starts_itself: bool = False
) -> list[str]:
    """Write folder/Modelfile for the GGUF file beside it; returns notes.

    system: the run's data.system. starts_itself: whether llama.cpp puts the start token before every prompt.
    Raises: ModelError.
    """
    frame, notes = frame_of(tokenizer)
    template = frame.go_template(tokenizer.bos_token or "" if starts_itself else "")
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer))
    for text in (template, system):
        if '"""' in text:
            raise _refused('a text holds """, which ends a text in a Modelfile')
    lines = [
        "# Ollama's defaults would change answers: they sample, and punish repeated tokens.",
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        *([f'SYSTEM """{system}"""'] if system else []),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        *([f"PARAMETER num_ctx {min(context_tokens, MAX_CONTEXT_TOKENS)}"] if context_tokens else []),
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
    ]
    write_whole(folder / "Modelfile", "\n".join(lines) + "\n")
    return notes
