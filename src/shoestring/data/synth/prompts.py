"""What a teacher is asked: every prompt of synthesis, each template with an id that provenance carries.

Sources: examples of the task as context for new ones, Self-Instruct (arXiv 2212.10560); attributes drawn anew for
each request, AttrPrompt (arXiv 2306.15895); answers grounded in a passage (arXiv 2308.06259).
A change of wording needs a new id: answers already paid for belong to the old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...messages import Example, Message, Prompt, answered_turns, with_tools

PAIRS, FROM_TASK, FROM_DOCUMENT, ANSWER = "pairs-1", "task-1", "document-1", "answer-1"
TOOLS = "-tools-1"  # after the id of a template that shows tools

# Drawn one of each a request. Relative words: what is long depends on the task.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "length": ("short", "of usual length", "long for such a text"),
    "writer": (
        "writes carefully", "in a hurry, with typing errors", "informal", "formal and polite", "annoyed",
        "not a native speaker", "an expert who uses the jargon",
    ),
    "case": (
        "the commonest case", "an unusual case", "a borderline case that still has one right answer",
        "a case with many details", "a case with numbers, dates or names",
    ),
}  # fmt: skip
MAX_SHOWN_CHARS = 2000  # of a seed or an earlier input inside a prompt
WRITER = (
    "You write examples from which a small language model learns one task. Inputs read like what real people send. "
    "Every answer is right, complete, and in the form the task asks for."
)
CALL_RULE = (
    'An answer that calls a tool is {"name": TOOL, "arguments": {...}}, or a list of those, and nothing else; only the '
    "tools above are called, with the arguments they take."
)
FORMAT = 'Reply with a JSON array and nothing else: [{"input": "...", "answer": ...}, ...]'


def pairs_prompt(
    instruction: str,
    shots: Sequence[Example],
    num_items: int,
    *,
    label: str | None = None,
    attributes: Mapping[str, str],
    avoid: Sequence[str] = (),
    passage: str = "",
    is_json: bool = False,
    tools: str = "",
) -> tuple[Prompt, str]:
    """A request for num_items new inputs with their answers, and the id of its template.

    label: what the right answer of each is to be. avoid: inputs already written. passage: what they are about.
    tools: declarations, as of an Example.
    """
    parts = [f"The task: {instruction}"]
    if tools:
        parts.append(f"The tools that may be called:\n{tools}")
    if shots:
        parts += ["Real examples:", *(_shown(shot) for shot in shots)]
    if passage:
        parts.append(f'A passage:\n"""\n{passage}\n"""')
    rules = ["Each input stands on its own and differs from all others in subject, facts and wording."]
    if shots:
        rules.append("Language, form and level of detail are those of the real examples; their facts are not reused.")
    if passage:
        rules.append("Every fact in input and answer stands in the passage. The input does not speak of 'the passage'.")
    if label is not None:
        rules.append(f"The right answer of each is exactly: {label}")
    if tools:
        rules.append(CALL_RULE)
    if is_json:
        rules.append("The answer is a JSON value, not text.")
    if attributes:
        rules.append("This time: " + "; ".join(f"{name}: {value}" for name, value in attributes.items()) + ".")
    if avoid:
        rules.append("Written already, so not again:\n" + "\n".join(f"  - {_clip(text, 200)}" for text in avoid))
    what = "1 new example" if num_items == 1 else f"{num_items} new examples"
    parts.append(f"Write {what} of this task.\n" + "\n".join(f"- {rule}" for rule in rules))
    parts.append(FORMAT)
    template = FROM_DOCUMENT if passage else PAIRS if shots else FROM_TASK
    return (Message("system", WRITER), Message("user", "\n\n".join(parts))), template + (TOOLS if tools else "")


def answer_prompt(
    instruction: str, labels: Sequence[str], shots: Sequence[Example], text: str, passage: str = "", tools: str = ""
) -> Prompt:
    """A request for the answer to one input, after shots that are the same for every input.

    The common beginning is what providers' prompt caches discount.
    """
    system = instruction
    if labels and not all(label in instruction for label in labels):
        system += f"\nAnswer with exactly one of: {', '.join(labels)}"
    turns = [m for shot in shots for m in (Message("user", shot.user_text), *answered_turns(shot))]
    if passage:
        text = f'{text}\n\nAnswer from this passage alone:\n"""\n{passage}\n"""'
    return with_tools((Message("system", system), *turns, Message("user", text)), tools)


def _shown(shot: Example) -> str:
    return f"Input: {_clip(shot.user_text, MAX_SHOWN_CHARS)}\nAnswer: {_clip(shot.completion, MAX_SHOWN_CHARS)}"


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
