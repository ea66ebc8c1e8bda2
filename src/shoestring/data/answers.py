"""What is wrong with one row's text: answers that cannot be right, and oddities a person should see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from .parse import is_cut_off

PLACEHOLDERS = {
    "nooutput", "no output", "n/a", "nan", "tbd", "todo", "...", "placeholder", "insert answer here",
    "your answer here", "output", "answer", "no answer provided", "undefined",
}  # fmt: skip
LABEL_PLACEHOLDERS = {"nooutput", "no output", "nan", "undefined"}  # the rest may be a class
MARKERS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_text|startoftext|"
    r"user|assistant|system|end|eom_id)\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?s>|<[be]os>"
)
START_TOKEN = re.compile(r"\s*(?:<s>(?!.*</s>)|<\|begin_of_text\|>|<\|startoftext\|>|<bos>)", re.DOTALL)
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "<|end|>")
# UTF-8 read as Latin-1 or Windows-1252: a lead byte's character followed by a continuation byte's.
MOJIBAKE = re.compile("Ã[\u0080-\u00bf]|Â[\u0080-\u00bf]|â€[\u0080-\u009f™œ¦“”˜]|ï»¿")
MERGED = re.compile(r"\n\s*(?:\d+[.)]|#{2,})\s*Instruction\b", re.IGNORECASE)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def answer_problem(answer: str, kind: str) -> tuple[str, str] | None:
    """Code and evidence when an answer cannot be a right one whatever the prompt; else None."""
    text = answer.strip()
    if not text:
        return "empty_answer", "the answer is empty" if not answer else "the answer is only white space"
    if len(text) < 30:
        bare = re.sub(r"^\W+|\W+$", "", text.casefold()) or text
        if bare in (LABEL_PLACEHOLDERS if kind == "classify" else PLACEHOLDERS):
            return "placeholder_answer", f"the answer is a placeholder: {text}"
    if kind == "extract":
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
            if not isinstance(value, dict | list):
                return "answer_not_json", f"neither an object nor a list: {text[:120]}"
        except (ValueError, RecursionError) as error:
            if text[0] in "{[" and is_cut_off(text):
                return "truncated_answer", f"the JSON answer breaks off: …{text[-60:]}"
            return "answer_not_json", f"{str(error).split(':')[0]}: {text[:120]}"
    elif kind == "math" and not re.search(r"\d", text):
        return "no_number", f"a math answer states a number: {text[:120]}"
    elif kind != "classify" and re.match(r'\{\s*"|\[\s*\{\s*"', text) and is_cut_off(text):
        # Text tasks: only what plainly is JSON can be seen to break off.
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return "truncated_answer", f"the answer begins like JSON and breaks off: …{text[-60:]}"
    return None


def oddities(prompt: str, answer: str, kind: str) -> Iterator[tuple[str, str]]:
    """Code and evidence of what is kept and shown to a person. prompt: every message before the answer."""
    for where, text in (("prompt", prompt), ("answer", answer)):
        if "<" in text or "INST]" in text:
            yield from _markers(where, text)
        if not text.isascii():
            found = MOJIBAKE.search(text)
            if found:
                yield "mojibake", f"in the {where}: {_around(text, found.start())}"
            if "\ufffd" in text:
                yield "replacement_character", f"in the {where}: {_around(text, text.index(chr(0xFFFD)))}"
    if kind not in ("classify", "extract") and answer.count("```") % 2:
        yield "open_code_block", f"a code block is opened and not closed; cut off? …{answer[-80:]}"
    if "nstruction" in answer and (merged := MERGED.search(answer)):
        yield "merged_instruction", f"a second instruction stands in the answer: {_around(answer, merged.start())}"


def _markers(where: str, text: str) -> Iterator[tuple[str, str]]:
    found = MARKERS.search(text)
    if not found or ("</s>" in text and "<s>" in text):  # <s>struck</s> is HTML
        return
    if START_TOKEN.match(text):
        yield "doubled_start_token", f"the {where} begins with {text.lstrip()[:20]!r}, which the template writes itself"
    elif where == "answer" and (any(token in text for token in END_TOKENS) or text.rstrip().endswith("</s>")):
        yield "end_token_in_answer", f"generation would stop here: {_around(text, found.start())}"
    elif found[0] not in ("<s>", "</s>"):
        yield "template_marker", f"in the {where}: {_around(text, found.start())}"


def _around(text: str, position: int) -> str:
    return text[max(0, position - 30) : position + 50]
