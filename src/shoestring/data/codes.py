"""Every fault curation can report: its class, what is done about it, what it means (docs/fault-codes.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Klass = Literal["file", "shape", "tokenised", "set"]
Repair = Literal["safe", "ask", "drop"]


@dataclass(frozen=True, slots=True)
class Code:
    """klass: what was looked at. repair: safe (mended and recorded), ask (kept, for a person), drop (set aside)."""

    klass: Klass
    repair: Repair
    meaning: str


CODES: dict[str, Code] = {
    # file: bytes, text, and what separates rows
    "byte_order_mark": Code("file", "safe", "A UTF-8 byte order mark stands before the first row; ignored."),
    "crlf": Code("file", "safe", "Lines end in carriage return and line feed; read as line feeds."),
    "utf16": Code("file", "safe", "The file is UTF-16 or UTF-32; read as such."),
    "undecodable": Code("file", "ask", "Bytes that are no character of the file's encoding; shown as �."),
    "not_utf8": Code("file", "safe", "A line that is not UTF-8; read as Latin-1 or Windows-1252."),
    "nul": Code("file", "safe", "NUL characters; removed."),
    "damaged_gzip": Code("file", "ask", "The gzip data break off; the rows before are kept."),
    "damaged_zstd": Code("file", "ask", "The Zstandard data break off; the rows before are kept."),
    "mojibake": Code("file", "ask", "Text decoded once too often, such as Ã© for é."),
    "replacement_character": Code("file", "ask", "The character � stands in the text: something was lost earlier."),
    "invalid_json": Code("file", "drop", "A row that is no JSON."),
    "truncated_line": Code("file", "drop", "A row that breaks off."),
    "not_an_object": Code("file", "drop", "A JSON value that is no object with named fields."),
    "several_objects_on_line": Code("file", "safe", "More than one object on a line; each is read."),
    "text_after_object": Code("file", "ask", "Text after the object on its line; ignored."),
    "repeated_key": Code("file", "ask", "A key stands twice in one object; the last is kept, as ordinary parsers do."),
    "not_a_number": Code("file", "ask", "NaN or Infinity, which are no JSON; read as missing."),
    "control_character": Code("file", "safe", "An unescaped control character in a string; kept."),
    "unpaired_surrogate": Code("file", "safe", "Half of a character pair; replaced by �."),
    "array_as_jsonl": Code("file", "safe", "A JSON array named as JSON lines; read as an array."),
    "jsonl_as_json": Code("file", "safe", "JSON lines named .json; read line by line."),
    "multi_line_object": Code("file", "safe", "Objects spread over several lines of a JSON lines file; read."),
    "wrapped_array": Code("file", "safe", "The rows stand in a list inside an object; read from there."),
    "columns_as_json": Code("file", "safe", "An object of columns; read as rows."),
    "truncated_array": Code("file", "ask", "The closing ] of an array is missing."),
    "text_after_array": Code("file", "ask", "Text after the closing ] of an array; ignored."),
    "ragged_row": Code("file", "drop", "A CSV row with more or fewer cells than the header."),
    "bad_quote": Code("file", "drop", "A CSV row whose quotation marks do not close."),
    "loose_quote": Code("file", "safe", "A quotation mark inside a CSV cell; read as written."),
    "header_is_data": Code("file", "ask", "A CSV without header: its first line is a row."),
    "header_as_data": Code("file", "drop", "The CSV header stands again among the rows."),
    "repeated_column": Code("file", "ask", "A column stands twice in the header; the last is kept."),
    "other_splits": Code("file", "ask", "A `datasets` folder holds further splits; left aside."),
    # shape: fields, turns, and answers of one row
    "missing_field": Code("shape", "drop", "No prompt and answer among the row's fields."),
    "mixed_shapes": Code("shape", "ask", "Rows of another shape than most of the file."),
    "inconsistent_columns": Code("shape", "ask", "Rows with other fields than the file's first ones."),
    "wrong_type": Code("shape", "ask", "A field holds another type than in most rows; read as text."),
    "stringified_json": Code("shape", "safe", "A list of turns written as a string; read as a list."),
    "plain_text": Code("shape", "ask", "Text without question and answer; the whole text is learned."),
    "noinput_placeholder": Code("shape", "safe", "An input that says there is none; read as no input."),
    "url_as_input": Code("shape", "ask", "The input is only a web address, which the model cannot open."),
    "not_messages": Code("shape", "drop", "The messages field is no list of turns."),
    "unknown_role": Code("shape", "drop", "A turn without a role we know."),
    "role_alias": Code("shape", "safe", "An unusual name of a role; read as the usual one."),
    "not_text": Code("shape", "drop", "A turn holds an image or another part that is no text."),
    "consecutive_roles": Code("shape", "safe", "Two turns of one role in a row; joined."),
    "system_not_first": Code("shape", "ask", "A system message after the first turn."),
    "bad_weight": Code("shape", "ask", "A turn's weight is neither 0 nor 1; read as 1."),
    "empty_turn": Code("shape", "ask", "A turn before the answer is empty."),
    "no_assistant": Code("shape", "drop", "A conversation without an assistant turn to learn."),
    "ends_without_answer": Code("shape", "safe", "Turns after the last assistant turn; unused."),
    "bad_tool_declaration": Code("shape", "ask", "A tool that declares no function with a name; left aside."),
    "undeclared_tool": Code("shape", "ask", "A call of a tool the row does not declare."),
    "bad_tool_arguments": Code("shape", "ask", "Arguments of a tool call that are no JSON object."),
    "tool_result_without_call": Code("shape", "ask", "A tool result without a call before it, or with another id."),
    "preference_as_answer": Code("shape", "safe", "A preference pair: the chosen answer is learned, both are stored."),
    "rejected_missing": Code("shape", "ask", "A preference pair whose rejected answer is missing or empty."),
    "chosen_equals_rejected": Code("shape", "drop", "A preference pair whose two answers are the same."),
    "pair_prompts_differ": Code("shape", "ask", "The two sides of a preference pair answer different prompts."),
    "bad_flag": Code("shape", "drop", "A KTO label that is neither true nor false."),
    "undesired_answer": Code("shape", "drop", "A KTO row marked as undesired: no answer to imitate."),
    "empty_prompt": Code("shape", "drop", "There is nothing to answer."),
    "empty_answer": Code("shape", "drop", "The answer is empty or white space."),
    "placeholder_answer": Code("shape", "drop", "The answer is a placeholder such as N/A or nooutput."),
    "answer_not_json": Code("shape", "drop", "An extract task whose answer is no JSON object or list."),
    "truncated_answer": Code("shape", "drop", "A JSON answer that breaks off."),
    "no_number": Code("shape", "drop", "A math answer without a number."),
    "open_code_block": Code("shape", "ask", "A code block is opened and not closed."),
    "unreadable_reply": Code("shape", "drop", "Synthesis: a teacher's reply without an input and an answer to read."),
    "truncated_reply": Code("shape", "drop", "Synthesis: a teacher's reply cut at the token limit."),
    "unknown_label": Code("shape", "drop", "Synthesis: an answer that is none of the labels."),
    "off_schema": Code("shape", "drop", "Synthesis: an answer with keys, types or values that no seed has."),
    "off_length": Code("shape", "drop", "Synthesis: an input or answer several times as long as the longest seed."),
    "unsupported_number": Code(
        "shape", "drop", "Synthesis: a number that stands neither in the passage nor the input."
    ),
    "low_agreement": Code("shape", "drop", "Synthesis: too few of the teacher's answers agree."),
    "unconfirmed": Code("shape", "drop", "Synthesis: the budget or the endpoint ended before enough answers came."),
    "merged_instruction": Code("shape", "ask", "A second instruction and its answer stand inside the answer."),
    # tokenised: what a model would see
    "too_long": Code(
        "tokenised", "drop", "More tokens than the model takes; says how much of the answer would be lost."
    ),
    "template_refuses": Code(
        "tokenised", "drop", "The model's chat template cannot carry the conversation, such as two calls at once."
    ),
    "tools_not_in_template": Code(
        "tokenised", "safe", "The model's chat template shows no tools; they are written into the system message."
    ),
    "no_trainable_tokens": Code("tokenised", "drop", "No token of the answer would bear loss."),
    "template_marker": Code("tokenised", "ask", "A chat template's marker stands in the text, such as <|im_start|>."),
    "doubled_start_token": Code("tokenised", "ask", "The text begins with a start token the template writes too."),
    "end_token_in_answer": Code(
        "tokenised", "ask", "An end token stands inside the answer: generation would stop there."
    ),
    # set: rows seen together
    "exact_duplicate": Code("set", "drop", "Prompt and answer equal an earlier row's after normalisation."),
    "near_duplicate": Code("set", "drop", "Differs from a kept row only in ways that do not change what it teaches."),
    "contradiction": Code("set", "drop", "One prompt with answers that exclude each other."),
    "near_contradiction": Code("set", "ask", "Prompts that ask the same with answers that exclude each other."),
    "several_answers": Code("set", "ask", "One prompt with several answers, of which all may be right."),
    "leak_into_eval": Code("set", "drop", "A training row whose prompt is also held out."),
    "single_row_label": Code("set", "ask", "A label that stands on one row only."),
    "label_not_in_train": Code("set", "ask", "A held-out label that is never taught."),
    "labels_alike": Code("set", "ask", "Labels that differ only in writing."),
    "label_imbalance": Code("set", "ask", "The commonest label has many times the rows of the rarest."),
    "not_sampled": Code("set", "drop", "Left out by curate.max_train_rows or curate.max_eval_rows."),
    "not_chosen": Code("set", "drop", "Left out by the token budget."),
    "label_error": Code("set", "ask", "The text reads like another label than the one given."),
    "unsupported_value": Code("set", "ask", "The answer states what the prompt does not support, or contradicts it."),
    "omitted_value": Code("set", "ask", "The answer is silent on a value that the prompt states."),
    "arithmetic": Code("set", "ask", "An equation between numbers in the answer does not hold."),
    "dropped_in_review": Code("set", "drop", "A person's decision in review.csv."),
    "kept_in_review": Code("set", "safe", "Kept by a person's decision in review.csv."),
    "corrected_in_review": Code("set", "safe", "The answer was corrected in review.csv."),
    "restored": Code("set", "safe", "A rule would have dropped the row; a person's decision keeps it."),
    # safety: what should not be learned
    "secret_api_key": Code("set", "ask", "An API key of a known shape, its checksum right where it has one."),
    "secret_private_key": Code("set", "ask", "A private key block."),
    "secret_jwt": Code("set", "ask", "A JSON web token."),
    "secret_password": Code("set", "ask", "A password, key or token after its name."),
    "secret_connection": Code("set", "ask", "A password in an address such as postgres://user:password@host."),
    "personal_email": Code("set", "ask", "An e-mail address."),
    "personal_phone": Code("set", "ask", "A phone number."),
    "personal_iban": Code("set", "ask", "A bank account number (IBAN) whose checksum is right."),
    "personal_card": Code("set", "ask", "A payment card number whose checksum is right."),
    "personal_ssn": Code("set", "ask", "A US social security number."),
    "personal_ip": Code("set", "ask", "A public IP address."),
    "refusal": Code("set", "ask", "The answer refuses, or speaks of itself as an AI."),
    "boilerplate": Code("set", "ask", "The answer opens or closes with a chat phrase, such as I hope this helps."),
    "language_mix": Code("set", "ask", "Prompt or answer is in another language than most rows."),
}


def catalogue() -> str:
    """The codes as a Markdown page."""
    parts = [
        "# Fault codes\n",
        "Written by `python scripts/write_codes.py` from `src/shoestring/data/codes.py`. Each fault carries source,",
        "line and evidence. safe: mended and recorded. ask: kept, for a person to look at. drop: set aside in",
        "`dropped.jsonl`, whole.",
    ]
    headings = {
        "file": "File", "shape": "Shape", "tokenised": "Tokenised", "set": "Set",
    }  # fmt: skip
    for klass, heading in headings.items():
        rows = [f"| `{name}` | {c.repair} | {c.meaning} |" for name, c in CODES.items() if c.klass == klass]
        parts += [f"\n## {heading}\n", "| code | repair | meaning |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"
