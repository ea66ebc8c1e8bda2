"""Every format and shape becomes the same Examples; every fault is reported with its line, in one pass."""

import gzip
import json
import tracemalloc
import zlib

import pytest

from shoestring.config import FieldsConfig
from shoestring.data import decode
from shoestring.data import sample as sampling
from shoestring.data.load import load
from shoestring.data.sample import sample
from shoestring.data.sources import files_of
from shoestring.errors import DataError
from shoestring.records import no_progress

PAIRS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(3)]


def read(folder, name, content, fields=None, system=""):
    """Write a file, load it."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return load([name], FieldsConfig(**(fields or {})), system, folder, no_progress)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(loaded):
    return [(e.user_text, e.completion) for e in loaded.examples]


def codes(records):
    return [(r.code, r.line) for r in records]


def adds_up(loaded):
    return loaded.num_rows + loaded.num_expanded == len(loaded.examples) + len(loaded.dropped)


# ---------------------------------------------------------------- formats

EXPECTED = [(r["prompt"], r["completion"]) for r in PAIRS]


def as_csv(delimiter):
    lines = ["prompt,completion", *(f"{r['prompt']},{r['completion']}" for r in PAIRS)]
    return "\n".join(lines).replace(",", delimiter) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", jsonl(PAIRS), [1, 2, 3]),
        ("a.json", json.dumps(PAIRS), [1, 2, 3]),  # an array on one line is numbered by record
        ("a.json", json.dumps(PAIRS, indent=2), [2, 6, 10]),
        ("a.csv", as_csv(","), [2, 3, 4]),
        ("a.csv", as_csv(";"), [2, 3, 4]),
        ("a.tsv", as_csv("\t"), [2, 3, 4]),
        ("a.csv", as_csv(",").replace("\n", "\r\n"), [2, 3, 4]),
    ],
)
@pytest.mark.parametrize("is_gzip", [False, True])
def test_every_text_format_gives_the_same_examples(tmp_path, name, content, lines, is_gzip):
    data = gzip.compress(content.encode()) if is_gzip else content
    loaded = read(tmp_path, name + (".gz" if is_gzip else ""), data)
    assert pairs(loaded) == EXPECTED
    assert [e.line for e in loaded.examples] == lines
    assert codes(loaded.faults) == ([("crlf", 1)] if "\r" in content else [])
    assert not loaded.dropped and adds_up(loaded)


def test_parquet_reads_label_names_and_missing_values(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a", "b", None], "label": [1, 0, 1]})
    feature = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    loaded = load(["a.parquet"], FieldsConfig(), "", tmp_path, no_progress)
    assert pairs(loaded) == [("a", "yes"), ("b", "no"), ("", "yes")]
    assert [e.line for e in loaded.examples] == [1, 2, 3]


def test_datasets_folder_and_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features=features)
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "saved"))
    loaded = load(["saved"], FieldsConfig(), "", tmp_path, no_progress)
    assert pairs(loaded) == [("a", "yes"), ("b", "no")]
    assert [f.code for f in loaded.faults] == ["other_splits"]
    assert pairs(load(["saved/test"], FieldsConfig(), "", tmp_path, no_progress)) == [("a", "yes")]


def test_globs_and_folders_leave_held_out_files_aside(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(jsonl([{"prompt": name, "completion": "x"}]))
    loaded = load(["train-*.jsonl"], FieldsConfig(), "", tmp_path, no_progress)
    assert [e.source for e in loaded.examples] == ["train-0.jsonl", "train-1.jsonl"]
    folder = load([str(tmp_path)], FieldsConfig(), "", tmp_path, no_progress)
    assert [e.user_text for e in folder.examples] == ["train-0.jsonl", "train-1.jsonl"]
    assert "test.jsonl" in folder.notes[0]
    names = [p.name for p in files_of(["train-*.jsonl", str(tmp_path / "*-1.jsonl"), "hf:a/b"], tmp_path)]
    assert names == ["train-0.jsonl", "train-1.jsonl"]


# ---------------------------------------------------------------- shapes


def test_pairs_by_many_names(tmp_path):
    for prompt, answer in (("question", "answer"), ("Text", "Category"), ("input", "output"), ("query", "response")):
        assert pairs(read(tmp_path, "a.jsonl", jsonl([{"id": 7, prompt: "p", answer: "a"}]))) == [("p", "a")]


def test_alpaca_joins_instruction_and_input_and_sees_noinput(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "<noinput>", "output": "La"},
        {"instruction": "Rest.", "input": "", "output": "Zzz"},
    ]
    loaded = read(tmp_path, "a.json", json.dumps(rows))
    assert pairs(loaded) == [("Add.\n\n1 2", "3"), ("Sing.", "La"), ("Rest.", "Zzz")]
    assert codes(loaded.faults) == [("noinput_placeholder", 2)]


def test_messages_and_sharegpt_become_one_example_an_assistant_turn(tmp_path):
    openai = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "Ciao"},
        ]
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Hi there"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Bye"},
            {"from": "gpt", "value": "Ciao"},
        ],
        "system": "Be brief.",
    }
    first = read(tmp_path, "a.jsonl", jsonl([openai]))
    second = read(tmp_path, "b.jsonl", jsonl([sharegpt]))
    assert [e.messages for e in first.examples] == [e.messages for e in second.examples]
    assert [[m.role for m in e.prompt] for e in first.examples] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert [e.completion for e in first.examples] == ["Hello", "Ciao"]
    assert first.num_rows == 1 and first.num_expanded == 1 and adds_up(first)


def test_conversation_faults(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "narrator", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
                      {"role": "bot", "content": "c"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                      {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
                      {"role": "user", "content": "e"}]},
        {"messages": []},
    ]  # fmt: skip
    loaded = read(tmp_path, "a.jsonl", jsonl(rows))
    assert codes(loaded.dropped) == [("no_assistant", 1), ("unknown_role", 2), ("not_text", 3), ("no_assistant", 6)]
    assert pairs(loaded) == [("a\nb", "c"), ("a\nc", "d")]
    kept = [f for f in loaded.faults if f.repair != "drop"]
    assert codes(kept) == [("consecutive_roles", 4), ("role_alias", 4), ("ends_without_answer", 5)]
    assert adds_up(loaded)


def test_system_prompt_of_the_run_file_goes_before_rows_without_one(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system": "Own."}]
    loaded = read(tmp_path, "a.jsonl", jsonl(rows), system="Given.")
    assert [e.messages[0].content for e in loaded.examples] == ["Given.", "Own."]


def test_answers_that_are_not_text(tmp_path):
    rows = [{"prompt": "p", "completion": value} for value in ({"größe": [1, None]}, 3, 2.5, True, None)]
    loaded = read(tmp_path, "a.jsonl", jsonl(rows))
    assert [e.completion for e in loaded.examples] == ['{"größe": [1, null]}', "3", "2.5", "True", ""]


def test_field_mapping_overrides_detection(tmp_path):
    rows = [{"prompt": "not this", "wish": "p", "completion": "nor this", "deed": "a"}]
    loaded = read(tmp_path, "a.jsonl", jsonl(rows), {"prompt": "wish", "completion": "deed"})
    assert pairs(loaded) == [("p", "a")]
    loaded = read(tmp_path, "a.jsonl", jsonl(rows), {"completion": "deed"})
    assert pairs(loaded) == [("not this", "a")]


# ---------------------------------------------------------------- faults, all in one pass


def test_all_faults_of_a_jsonl_file_at_once(tmp_path):
    lines = [
        b'{"prompt": "1", "completion": "good"}',
        b'{"prompt": "2" "completion": "comma missing"}',
        '{"prompt": "3", "completion": "café"}'.encode(),
        '{"prompt": "4", "completion": "café"}'.encode("latin-1"),
        b'"just a string"',
        b"",
        b'{"prompt": "7", "completion": "a\x00b"}',
        b'{"prompt": "8", "completion": "a"} {"prompt": "8b", "completion": "b"}',
        b'{"prompt": "9", "completion": "first", "completion": "second"}',
        b'{"prompt": "10", "completion": NaN}',
        b'{"prompt": "11", "completion": "tab\there"}',
        b'{"prompt": "12", "completion": "half \\ud83d"}',
        b'{"prompt": "13"}',
        b'{"prompt": "14", "completion": "cut o',
    ]
    loaded = read(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + b"\n".join(lines))
    assert codes(loaded.dropped) == [
        ("invalid_json", 2), ("not_an_object", 5), ("missing_field", 13), ("truncated_line", 14),
    ]  # fmt: skip
    assert codes(loaded.faults) == [
        ("byte_order_mark", 1), ("invalid_json", 2), ("not_utf8", 4), ("not_an_object", 5), ("nul", 7),
        ("several_objects_on_line", 8), ("repeated_key", 9), ("not_a_number", 10), ("control_character", 11),
        ("unpaired_surrogate", 12), ("missing_field", 13), ("truncated_line", 14),
    ]  # fmt: skip
    assert dict(pairs(loaded)) == {
        "1": "good", "3": "café", "4": "café", "7": "ab", "8": "a", "8b": "b", "9": "second", "10": "",
        "11": "tab\there", "12": "half \ufffd",
    }  # fmt: skip
    assert adds_up(loaded)
    assert "2" in next(d.row for d in loaded.dropped if d.code == "invalid_json")  # the row is kept whole


def test_a_latin1_file_and_utf16(tmp_path):
    content = jsonl(PAIRS).replace("answer", "réponse").replace("\\u00e9", "é")
    text = "".join(json.dumps({**r, "completion": "é"}, ensure_ascii=False) + "\n" for r in PAIRS)
    loaded = read(tmp_path, "a.jsonl", text.encode("latin-1"))
    assert [e.completion for e in loaded.examples] == ["é"] * 3
    assert codes(loaded.faults) == [("not_utf8", i) for i in (1, 2, 3)]
    assert "Latin-1" in loaded.faults[0].evidence
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        loaded = read(tmp_path, "b.jsonl", content.encode(encoding))
        assert len(loaded.examples) == 3
        assert codes(loaded.faults) == [("utf16", 1)]


def test_a_file_in_another_alphabet_is_flagged_for_a_decision(tmp_path):
    text = json.dumps({"prompt": "как мне вернуть эту книгу", "completion": "вот так"}, ensure_ascii=False)
    loaded = read(tmp_path, "a.jsonl", text.encode("cp1251"))
    assert loaded.faults[0].repair == "ask" and "convert the file to UTF-8" in loaded.faults[0].evidence


def test_array_named_jsonl_and_jsonl_named_json(tmp_path):
    loaded = read(tmp_path, "a.jsonl", json.dumps(PAIRS, indent=1))
    assert pairs(loaded) == EXPECTED and codes(loaded.faults) == [("array_as_jsonl", 1)]
    loaded = read(tmp_path, "a.json", jsonl(PAIRS))
    assert pairs(loaded) == EXPECTED and codes(loaded.faults) == [("jsonl_as_json", 1)]
    assert [e.line for e in loaded.examples] == [1, 2, 3]
    loaded = read(tmp_path, "b.jsonl", "\n".join(json.dumps(row, indent=1) for row in PAIRS))
    assert pairs(loaded) == EXPECTED and codes(loaded.faults) == [("multi_line_object", 1)]
    loaded = read(tmp_path, "b.json", json.dumps({"version": 1, "data": PAIRS}, indent=1))
    assert pairs(loaded) == EXPECTED and codes(loaded.faults) == [("wrapped_array", 3)]
    conversation = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    loaded = read(tmp_path, "c.json", json.dumps(conversation))
    assert pairs(loaded) == [("a", "b")] and not loaded.faults


def test_broken_elements_of_an_array_do_not_hide_the_others(tmp_path):
    text = json.dumps(PAIRS, indent=2).replace('"question 1",', '"question 1"')
    loaded = read(tmp_path, "a.json", text)
    assert [e.line for e in loaded.examples] == [2, 10]
    assert codes(loaded.dropped) == [("invalid_json", 6)]
    loaded = read(tmp_path, "b.json", json.dumps(PAIRS).replace('"question 1",', '"question 1"'))
    assert [e.line for e in loaded.examples] == [1, 3]
    loaded = read(tmp_path, "c.json", json.dumps(PAIRS, indent=2)[:-20])
    assert codes(loaded.dropped) == [("truncated_line", 10)]
    assert [f.code for f in loaded.faults] == ["truncated_line", "truncated_array"]


def test_csv_lines_quotes_ragged_rows_and_repeated_header(tmp_path):
    text = (
        "text,label\n"  # 1
        '"two\nlines, one row",a\n'  # 2-3
        "plain,b\n"  # 4
        "too,many,cells\n"  # 5
        "too few\n"  # 6
        "\n"  # 7
        "text,label\n"  # 8
        '"never closed,c\n'  # 9
        "after,d\n"  # 10
        '"closed"wrongly,e\n'  # 11
        "last,f\n"  # 12
    )
    loaded = read(tmp_path, "a.csv", text)
    assert [(e.line, e.user_text, e.completion) for e in loaded.examples] == [
        (2, "two\nlines, one row", "a"), (4, "plain", "b"), (10, "after", "d"), (11, "closedwrongly", "e"),
        (12, "last", "f"),
    ]  # fmt: skip
    assert codes(loaded.dropped) == [("ragged_row", 5), ("ragged_row", 6), ("header_as_data", 8), ("bad_quote", 9)]
    assert ("loose_quote", 11) in codes(loaded.faults)
    assert adds_up(loaded)


def test_csv_without_header_keeps_its_first_row(tmp_path):
    text = "My card has not come yet and I am waiting,arrival\nWhere is it,arrival\nStop it,cancel\n"
    loaded = read(tmp_path, "a.csv", text)
    assert [e.line for e in loaded.examples] == [1, 2, 3]
    assert [e.completion for e in loaded.examples] == ["arrival", "arrival", "cancel"]
    assert codes(loaded.faults) == [("header_is_data", 1)]


def test_a_data_frame_saved_as_columns_is_read_as_rows(tmp_path):
    columns = {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}
    loaded = read(tmp_path, "a.json", json.dumps(columns))
    assert pairs(loaded) == [("a", "x"), ("b", "y")] and codes(loaded.faults) == [("columns_as_json", 1)]


def test_json_that_breaks_ordinary_parsers_is_one_dropped_row(tmp_path):
    lines = [
        json.dumps(PAIRS[0]),
        '{"prompt": ' + "[" * 200_000,
        '{"prompt": ' + "9" * 5000 + "}",
        json.dumps(PAIRS[1]),
    ]
    loaded = read(tmp_path, "a.jsonl", "\n".join(lines) + "\n")
    assert [e.line for e in loaded.examples] == [1, 4]
    assert [d.line for d in loaded.dropped] == [2, 3]


def test_preference_rows_learn_the_chosen_answer(tmp_path):
    user, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "p"), ("assistant", "good"), ("assistant", "bad"))
    )
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {
            "conversations": [{"from": "human", "value": "p"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {},
        },
    ]
    for row in rows:
        loaded = read(tmp_path, "a.jsonl", jsonl([row]))
        assert pairs(loaded) == [("p", "good")] and len(loaded.examples[0].messages) == 2
        missing = [] if row["rejected"] else [("rejected_missing", 1)]
        assert codes(loaded.faults) == [*missing, ("preference_as_answer", 1)]
        assert [m.content for m in loaded.examples[0].rejected] == ([] if missing else ["bad"])


def test_damaged_gzip_gives_what_can_be_unpacked(tmp_path):
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(jsonl(PAIRS).encode()) + packer.flush(zlib.Z_SYNC_FLUSH)
    loaded = read(tmp_path, "a.jsonl.gz", packed)  # no end mark
    assert pairs(loaded) == EXPECTED
    assert codes(loaded.faults) == [("damaged_gzip", 4)]


def test_mixed_shapes_are_reported_once(tmp_path):
    rows = [*PAIRS, {"instruction": "i", "output": "o"}, {"instruction": "j", "output": "o"}]
    loaded = read(tmp_path, "a.jsonl", jsonl(rows))
    assert len(loaded.examples) == 5
    assert codes(loaded.faults) == [("mixed_shapes", 4)]


# ---------------------------------------------------------------- refusals


def refusal(folder, source, fields=None):
    with pytest.raises(DataError) as caught:
        load([source], FieldsConfig(**(fields or {})), "", folder, no_progress)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(message.splitlines()) < 24 and source in message
    return message


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz"])
def test_a_line_of_no_training_row_is_refused_by_its_length_and_is_not_held(tmp_path, monkeypatch, name):
    monkeypatch.setattr(decode, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(decode, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(sampling, "MAX_LINE_BYTES", 1 << 20)
    content = b"prompt,completion\nq,a\n" + b"x" * (64 << 20) + b"\nq,a\n"
    if ".jsonl" in name:
        content = jsonl(PAIRS[:2]).encode() + b'{"prompt": "' + b"x" * ((64 << 20) - 12) + b"\n" + jsonl(PAIRS).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    said = "line 3 has 64.0 MiB, the most is 1 MiB a line"
    for look in (lambda: load([name], FieldsConfig(), "", tmp_path), lambda: sample([name], tmp_path, FieldsConfig())):
        tracemalloc.start()
        with pytest.raises(DataError, match=said):
            look()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_an_array_on_one_line_and_carriage_returns_alone_have_no_such_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "BLOCK_BYTES", 64)
    monkeypatch.setattr(decode, "MAX_LINE_BYTES", 100)
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(40)]
    for name in ("a.json", "b.jsonl"):
        assert len(read(tmp_path, name, json.dumps(rows)).examples) == 40
    assert len(read(tmp_path, "c.jsonl", jsonl(rows).replace("\n", "\r")).examples) == 40


def test_missing_files_suggest_near_names(tmp_path):
    (tmp_path / "train.jsonl").write_text(jsonl(PAIRS))
    assert "did you mean train.jsonl?" in refusal(tmp_path, "trian.jsonl")
    assert "does not exist" in refusal(tmp_path, "nowhere/train.jsonl")
    assert "matches no file" in refusal(tmp_path, "*.csv")
    assert "OWNER/NAME" in refusal(tmp_path, "hf:a/b/c")


def test_all_missing_sources_are_named_at_once(tmp_path):
    with pytest.raises(DataError, match=r"(?s)one\.jsonl.*two\.csv"):
        load(["one.jsonl", "two.csv"], FieldsConfig(), "", tmp_path, no_progress)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b" \n\n", "white space"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG image"),
        ("a.csv", b"PK\x03\x04" + bytes(50), "ZIP archive"),
        ("a.jsonl", gzip.compress(b"{}"), "rename it to end in .gz"),
        ("a.csv", b"PAR1" + bytes(50), "rename it to end in .parquet"),
        ("a.parquet", b'{"prompt": "a"}', "JSON lines"),
        ("a.parquet", b"PAR1" + bytes(50), "no readable Parquet file"),
        ("a.jsonl", bytes(range(256)) * 8, "binary data"),
        ("a.jsonl.gz", b'{"prompt": "a"}', "rename it without .gz"),
        ("a.jsonl.gz", gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(50)), "PNG image"),
        ("a.txt", b'{"prompt": "a"}', "looks like JSON lines"),
        ("a.docx", b"PK\x03\x04" + bytes(50), "unknown kind of file"),
        ("a.jsonl", b"{broken\n{broken too\n", "line 2"),
        ("a.jsonl", b'{"foo": "a", "bar": "b"}\n', "Keys seen: foo (1 rows), bar (1 rows)"),
        ("a.csv", b"text,category\n", "holds no row"),
    ],
)
def test_what_cannot_be_data_is_refused_with_the_next_step(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path, name)


def test_unrecognised_fields_show_the_yaml_to_write(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl([{"id": 1, "question": "q", "outcome": "s"}]))
    assert "data:\n  fields:\n    prompt: question\n    completion: outcome" in refusal(tmp_path, "a.jsonl")
    message = refusal(tmp_path, "a.jsonl", {"prompt": "query", "completion": "outcome"})
    assert "data.fields names prompt: query" in message


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "notes.txt").write_text("x")
    assert "notes.txt" in refusal(tmp_path, "inside")
