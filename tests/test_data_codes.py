"""Every fault code: declared, documented, planted and found in one pass; none raised on clean data."""

import ast
import gzip
import json
import random
from pathlib import Path

import pytest

from shoestring.config import RunConfig
from shoestring.data.clean import RowLimit
from shoestring.data.codes import CODES, catalogue
from shoestring.data.curate import curate, curate_into
from shoestring.data.folder import curate as curate_files
from shoestring.records import no_progress
from tests.tiny import WORDS

ROOT = Path(__file__).resolve().parent.parent
DATA = Path("/work/shared/data")
REPORTING = {"Fault", "Notice", "RowFault", "Finding", "Suspect", "fault", "drop", "_drop_with_fault"}


def test_codes_used_are_declared_and_the_page_is_current() -> None:
    undeclared = set()
    for path in (ROOT / "src/shoestring/data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if name in REPORTING:
                words = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                undeclared |= {w for w in words if w.isidentifier() and w.islower() and w not in CODES}
    assert not undeclared, f"add to CODES: {undeclared}"
    assert len(CODES) >= 40 and {c.klass for c in CODES.values()} == {"file", "shape", "tokenised", "set"}
    page = (ROOT / "docs/fault-codes.md").read_text(encoding="utf-8")
    assert page == catalogue(), "run: python scripts/write_codes.py"


def talk(*turns: tuple[str, object], **more: object) -> dict[str, object]:
    return {"messages": [{"role": r, "content": c} for r, c in turns], **more}


U, A = ("user", "how is it"), ("assistant", "it is fine, thank you")
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "find"}}]


def calling(arguments: str = "{}", name: str = "find", result_of: str = "1") -> dict[str, object]:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    answered = {"role": "tool", "tool_call_id": result_of, "content": "4"}
    turns = [{"role": "user", "content": "look"}, asked, answered, {"role": "assistant", "content": "it is four"}]
    return {"messages": turns, "tools": TOOLS}


# One line of a JSON lines file each; what must be said of that line.
LINES: list[tuple[object, tuple[str, ...]]] = [
    (b'{"prompt": "a fine question", "completion": "a fine answer"}', ("byte_order_mark", "crlf")),
    (b'{"prompt": "a" "completion": "b"}', ("invalid_json",)),
    (b'{"prompt": "a", "completion": "cut o', ("truncated_line",)),
    (b'["a", "b"]', ("not_an_object",)),
    (b'{"prompt": "one", "completion": "x y"} {"prompt": "two", "completion": "y z"}', ("several_objects_on_line",)),
    (b'{"prompt": "tail", "completion": "x y"} # note', ("text_after_object",)),
    (b'{"prompt": "twice", "completion": "x", "completion": "y"}', ("repeated_key",)),
    (b'{"prompt": "nan", "completion": "x", "score": NaN}', ("not_a_number",)),
    (b'{"prompt": "tab", "completion": "x\ty"}', ("control_character",)),
    (b'{"prompt": "half", "completion": "x \\ud83d"}', ("unpaired_surrogate", "replacement_character")),
    (b'{"prompt": "nul\x00", "completion": "x y"}', ("nul",)),
    ('{"prompt": "latin", "completion": "café"}'.encode("latin-1"), ("not_utf8",)),
    ({"prompt": "moji", "completion": "cafÃ©"}, ("mojibake",)),
    ({"prompt": "lost", "completion": "caf\ufffd"}, ("replacement_character",)),
    ({"prompt": "nothing else"}, ("missing_field",)),
    ({"instruction": "do", "input": "noinput", "output": "done it"}, ("mixed_shapes", "noinput_placeholder")),
    ({"instruction": "read it", "input": "https://example.org/a", "output": "a page"}, ("url_as_input",)),
    ({"prompt": 7, "completion": "seven"}, ("wrong_type",)),
    ({"text": "a text by itself"}, ("mixed_shapes", "plain_text")),
    ({"prompt": " ", "completion": "x"}, ("empty_prompt",)),
    ({"prompt": "x1", "completion": " "}, ("empty_answer",)),
    ({"prompt": "x2", "completion": "N/A"}, ("placeholder_answer",)),
    ({"prompt": "x3", "completion": '{"a": "b'}, ("truncated_answer",)),
    ({"prompt": "x4", "completion": "look:\n```\ncode"}, ("open_code_block",)),
    ({"prompt": "x5", "completion": "done.\n8. Instruction: more\n8. Output: x"}, ("merged_instruction",)),
    ({"prompt": "x6 <|im_start|>user", "completion": "hm"}, ("template_marker",)),
    ({"prompt": "<s> x7", "completion": "hm"}, ("doubled_start_token",)),
    ({"prompt": "x8", "completion": "hm</s>"}, ("end_token_in_answer",)),
    (talk(U), ("mixed_shapes", "no_assistant")),
    (talk(("narrator", "x"), A), ("unknown_role",)),
    (talk(("prompter", "x9"), A), ("role_alias",)),
    (talk(("user", [{"type": "image_url"}]), A), ("not_text",)),
    (talk(U, U, A), ("consecutive_roles",)),
    (talk(U, A, ("system", "x"), U, A), ("system_not_first",)),
    (talk(U, ("assistant", ""), ("user", "x10"), A), ("empty_turn", "empty_answer")),
    (talk(U, A, ("user", "x11")), ("ends_without_answer",)),
    ({"messages": ["a", "b"], "prompt": "x", "completion": "kept as a pair"}, ()),
    ({"messages": [{"role": "user", "content": "w"}, {"role": "gpt", "content": "x", "weight": 3}]}, ("bad_weight",)),
    ({"messages": json.dumps(talk(("user", "x12"), A)["messages"])}, ("stringified_json",)),
    (calling(), ()),
    (calling(arguments="{broken"), ("bad_tool_arguments",)),
    ({**calling(), "tools": [*TOOLS, {"type": "retrieval"}]}, ("bad_tool_declaration",)),
    (calling(name="lose"), ("undeclared_tool",)),
    (calling(result_of="9"), ("tool_result_without_call",)),
    ({"prompt": "y1", "chosen": "good one", "rejected": "bad one"}, ("mixed_shapes", "preference_as_answer")),
    ({"prompt": "y2", "chosen": "good one", "rejected": ""}, ("rejected_missing",)),
    ({"prompt": "y3", "chosen": "same", "rejected": "same"}, ("chosen_equals_rejected",)),
    ({"chosen": talk(U, A)["messages"], "rejected": talk(("user", "other"), ("assistant", "no"))["messages"]},
     ("mixed_shapes", "pair_prompts_differ")),
    ({"prompt": "z1", "completion": "good answer", "label": True}, ("mixed_shapes",)),
    ({"prompt": "z2", "completion": "bad answer", "label": False}, ("undesired_answer",)),
    ({"prompt": "z3", "completion": "an answer", "kto_tag": "maybe"}, ("mixed_shapes", "bad_flag")),
]  # fmt: skip
SYSTEM = "Be of use."


def test_all_faults_of_all_rows_in_one_pass(tmp_path: Path) -> None:
    ordinary = [{"prompt": f"question {i} about", "completion": f"answer number {i} to it"} for i in range(60)]
    rows = [*(line for line, _ in LINES), *ordinary]
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    summary = curate_files(tmp_path / "a.jsonl", tmp_path / "out", kind="generate")
    faults = [json.loads(line) for line in (tmp_path / "out/faults.jsonl").read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    found = {(f["line"], f["code"]) for f in [*faults, *dropped] if CODES[f["code"]].klass != "set"}
    planted = {(number, code) for number, (_, wanted) in enumerate(LINES, 1) for code in wanted}
    assert found == planted
    assert all(f["evidence"] and f["repair"] in ("safe", "ask", "drop") for f in faults)
    counts = summary["counts"]
    kept = counts["rows_train"] + counts["rows_dev"] + counts["rows_eval"]
    assert counts["rows_in"] == len(rows) + 1  # one line holds two
    assert counts["rows_in"] + counts["rows_expanded"] == kept + counts["dropped"] and counts["dropped"] == len(dropped)


PAIR = {"prompt": "p q r", "completion": "an answer"}
FILES: list[tuple[str, bytes, str, str]] = [
    ("a.jsonl", json.dumps(PAIR).encode("utf-16"), "utf16", "generate"),
    ("a.jsonl", (json.dumps(PAIR) + "\n").encode("utf-16") + b"\x00\xd8\n\x00", "undecodable", "generate"),
    ("a.jsonl", json.dumps([PAIR, PAIR], indent=1).encode(), "array_as_jsonl", "generate"),
    ("a.json", (json.dumps(PAIR) + "\n" + json.dumps(PAIR)).encode(), "jsonl_as_json", "generate"),
    ("a.jsonl", json.dumps(PAIR, indent=1).encode(), "multi_line_object", "generate"),
    ("a.json", json.dumps({"rows": [PAIR]}).encode(), "wrapped_array", "generate"),
    ("a.json", b'{"text": ["a b", "b c"], "label": ["x y", "y z"]}', "columns_as_json", "generate"),
    ("a.json", json.dumps([PAIR, PAIR])[:-1].encode(), "truncated_array", "generate"),
    ("a.json", json.dumps([PAIR]).encode() + b" x", "text_after_array", "generate"),
    ("a.csv", b"text,label\na,b,c\nd,e\n", "ragged_row", "generate"),
    ("a.csv", b'text,label\n"a,b\nc,d\n', "bad_quote", "generate"),
    ("a.csv", b'text,label\n"a"a,b\nc,d\n', "loose_quote", "generate"),
    ("a.csv", b"Where is my card and why is it late,x\nanother one,x\n", "header_is_data", "generate"),
    ("a.csv", b"text,label\na,b\ntext,label\n", "header_as_data", "generate"),
    ("a.csv", b"text,label,label\na,b,c\n", "repeated_column", "generate"),
    ("a.jsonl.gz", gzip.compress((json.dumps(PAIR) + "\n").encode() * 99)[:-9], "damaged_gzip", "generate"),
    ("a.jsonl", b'{"messages": 7}\n' + json.dumps(talk(U, A)).encode(), "not_messages", "generate"),
    ("a.jsonl", b'{"prompt": "p", "completion": "no JSON"}', "answer_not_json", "extract"),
    ("a.jsonl", b'{"prompt": "p", "completion": "no number"}', "no_number", "math"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "code", "kind"), FILES, ids=[f[2] for f in FILES])
def test_faults_of_files(tmp_path: Path, name: str, content: bytes, code: str, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    fields = {"data": {"fields": {"messages": "messages"}}} if code == "not_messages" else {}
    config = RunConfig.model_validate(
        {"name": "t", "task": {"kind": kind, "bar": 0}, **fields, "data": {"train": name, **fields.get("data", {})}}
    )
    summary = curate_into(tmp_path / "out", config, tmp_path, may_be_few=True)
    assert code in {**summary["faults_by_code"], **summary["dropped_by_code"]}


def test_faults_of_a_damaged_zstd_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rng = random.Random(0)
    lines = [json.dumps({"prompt": f"{rng.getrandbits(2000):x}", "completion": "an answer"}) for _ in range(600)]
    packed = pyarrow.compress("\n".join(lines).encode(), "zstd", asbytes=True)
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    whole = curate_files(tmp_path / "a.jsonl.zst", tmp_path / "whole", kind="generate")
    assert whole["counts"]["rows_in"] == 600 and not whole["faults_by_code"]
    (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) - 5000])
    cut = curate_files(tmp_path / "a.jsonl.zst", tmp_path / "cut", kind="generate")
    assert "damaged_zstd" in cut["faults_by_code"]


def test_faults_of_the_set_and_the_tokens(tmp_path: Path) -> None:
    rows = [{"text": f"{WORDS[i % 13]} {WORDS[i // 13]} {i}", "label": f"l{i % 2}"} for i in range(120)]
    rows += [
        dict(rows[0]), {"text": "same", "label": "l0"}, {"text": "same?", "label": "l1"},
        {"text": "eval one", "label": "l0"}, {"text": "long one " * 30, "label": "l0"},
        {"text": "silent", "label": "l1"},
        {"text": "odd one", "label": "L-0"}, {"text": "odd two", "label": "l 0"}, {"text": "odd three", "label": "l 0"},
    ]  # fmt: skip
    held_out = [
        {"text": "eval one", "label": "l0"},
        {"text": "eval two", "label": "new"},
        {"text": "x3", "label": "new"},
    ]
    held_out += [{"text": f"other {WORDS[i % 13]} {i} {WORDS[i // 13]}", "label": "l0"} for i in range(40)]
    for name, some in (("train", rows), ("eval", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    config = RunConfig.model_validate(
        {"name": "t", "task": {"kind": "classify", "bar": 0}, "curate": {"max_train_rows": 90},
         "data": {"train": "train.jsonl", "eval": "eval.jsonl"}}
    )  # fmt: skip

    def lengths(examples):  # type: ignore[no-untyped-def]
        return [(len(e.user_text.split()), 1 if e.user_text == "silent" else 2) for e in examples]

    result = curate(config, tmp_path, limits=[RowLimit("m", lengths, 20, 20)])
    found = {r.code for r in (*result.dropped, *result.faults)}
    assert found >= {
        "exact_duplicate", "contradiction", "leak_into_eval", "too_long", "no_trainable_tokens", "labels_alike",
        "single_row_label", "label_not_in_train", "not_sampled",
    }  # fmt: skip
    many = [{"text": f"{WORDS[i % 13]} {i}", "label": "often"} for i in range(150)]
    many += [{"text": f"rare {i}", "label": "rare"} for i in range(2)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    skewed = RunConfig.model_validate(
        {"name": "t", "task": {"kind": "classify", "bar": 0}, "data": {"train": "train.jsonl"}}
    )
    assert "label_imbalance" in {f.code for f in curate(skewed, tmp_path).faults}


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("banking77/train.csv", "classify", {"crlf"}),
        ("gsm8k/train.jsonl", "math", set()),
        ("e2e_nlg/devset.csv", "generate", {"crlf"}),
        ("dolly_filtered/dolly_3k.json.gz", "generate", set()),
        ("format_fixtures/dpo_en_demo.json.gz", "chat", {"preference_as_answer", "open_code_block", "mojibake"}),
        # One of its answers is JSON with a brace too few.
        ("format_fixtures/glaive_toolcall_en_demo.json.gz", "chat", {"open_code_block"}),
        ("alpaca_noisy/random_9k.json.gz", "generate", {"noinput_placeholder", "url_as_input", "merged_instruction"}),
    ],
)
def test_no_false_alarm_on_real_sets(tmp_path: Path, name: str, kind: str, expected: set[str]) -> None:
    from shoestring.config import FieldsConfig
    from shoestring.data.engine import Local, Table
    from shoestring.data.load import scan
    from shoestring.data.rows import Settings

    with Table() as table:
        settings = Settings(FieldsConfig(), "", kind)
        seen = scan([name], DATA, settings, table, Local(1), no_progress)
        table.close()
        assert {f.code for f in seen.faults if CODES[f.code].klass != "set"} == expected
        dropped = {table.code_of(i) for i in table.code.nonzero()[0]}
    allowed = {"placeholder_answer", "empty_answer"} if "alpaca" in name else {"truncated_answer"} & dropped
    assert dropped <= allowed and (("truncated_answer" in dropped) == ("glaive" in name))
