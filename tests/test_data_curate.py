"""Curation: every row is kept or dropped with its reason, and the numbers add up."""

import json
import random

import pytest

from shoestring.config import RunConfig
from shoestring.data.answers import answer_problem
from shoestring.data.clean import RowLimit
from shoestring.data.curate import curate, curate_into
from shoestring.data.normalise import answer_key, meaning_key, normalise_prompt
from shoestring.data.store import read_curated, write_curated
from shoestring.errors import DataError
from tests.tiny import WORDS


def config(kind="generate", **parts):
    data = {"train": parts.pop("train", "train.jsonl"), **parts.pop("data", {})}
    return RunConfig.model_validate({"name": "t", "task": {"kind": kind, "bar": 0.5}, "data": data, **parts})


def write(folder, rows, name="train.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def filler(number, answer="fine thing number {i} to say here", seed=0):
    """Rows that have nothing in common with one another."""
    rng = random.Random(seed)
    return [
        {"prompt": " ".join(rng.sample(WORDS, 5)) + f" {seed} {i}", "completion": answer.format(i=i)}
        for i in range(number)
    ]


def curated(folder, rows, kind="generate", **parts):
    write(folder, rows)
    return curate(config(kind, **parts), folder)


def lines(result, code):
    return [(d.line, d.partner_line) for d in result.dropped if d.code == code]


def word_lengths(examples):
    return [(len(e.user_text.split()), len(e.completion.split()) + 1) for e in examples]


def adds_up(result):
    c = result.counts
    kept = len(result.train) + len(result.dev) + len(result.eval)
    return (
        c["rows_in"] + c["rows_expanded"]
        == kept + len(result.dropped)
        == (c["rows_train"] + c["rows_dev"] + c["rows_eval"] + c["dropped"])
    )


# ---------------------------------------------------------------- what counts as the same


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Where is my card?", "where is  my card"),
        ("It's here.", "Its here"),
        ("ｆｕｌｌ width", "full width"),
        ("A\nb", "a b"),
    ],
)
def test_prompts_that_ask_the_same(a, b):
    assert normalise_prompt(a) == normalise_prompt(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is 3.5 times 2", "What is 35 times 2"), ("Meet at 10:30", "Meet at 1030"), ("5² cm", "52 cm"),
        ("turn it on", "do not turn it on"), ("-5 degrees", "5 degrees"), ("Use C++", "Use C"), ("(3+4)*2", "3+(4*2)"),
        ("What is 5!", "What is 5"), ("?", "!"), ("$50", "€50"), ("1,000", "1.000"),
    ],
)  # fmt: skip
def test_prompts_that_differ_in_a_value_stay_apart(a, b):
    assert normalise_prompt(a) != normalise_prompt(b)


def test_answers_that_agree():
    assert answer_key('{"a": 1, "b": "X"}', "extract") == answer_key('{"b":"x","a":1}', "extract")
    assert answer_key('{"a": 1}', "extract") != answer_key('{"a": "1"}', "extract")
    assert answer_key("SELECT 1 ;", "sql") == answer_key("select  1", "sql")
    assert answer_key("Yes", "classify") != answer_key("yes", "classify")
    assert meaning_key("so 2+2\n#### 1,004", "math") == meaning_key("thus\n#### 1004", "math")


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ("", "generate", "empty_answer"), (" \n", "classify", "empty_answer"),
        ("<nooutput>", "generate", "placeholder_answer"),
        ("N/A.", "chat", "placeholder_answer"), ("n/a", "classify", None), ("...", "generate", "placeholder_answer"),
        ("None", "generate", None), ("no", "generate", None), ('{"a": 1', "extract", "truncated_answer"),
        ('{"a": "b', "generate", "truncated_answer"), ("{name} is a placeholder", "generate", None),
        ("{'a': 1}", "extract", "answer_not_json"), ("It is 1", "extract", "answer_not_json"),
        ('{"a": 1}', "extract", None),
        ("The end is near", "generate", None),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_right(answer, kind, code):
    problem = answer_problem(answer, kind)
    assert (problem[0] if problem else None) == code


# ---------------------------------------------------------------- rows left out


def test_duplicates_keep_the_first_and_name_it(tmp_path):
    rows = filler(60)
    rows.insert(10, {**rows[2], "prompt": rows[2]["prompt"].upper() + " ?"})
    rows.append(dict(rows[0]))
    result = curated(tmp_path, rows)
    assert lines(result, "exact_duplicate") == [(11, 3), (62, 1)]
    assert "equal after normalisation to line 3" in result.dropped[0].evidence
    assert result.dropped[0].row == rows[10]
    assert adds_up(result)
    kept = curated(tmp_path, rows, curate={"drop_duplicates": False})
    assert not kept.dropped and adds_up(kept)


def test_contradictions_follow_the_majority_or_fall(tmp_path):
    rows = filler(60, '{{"n": {i}}}')
    rows += [{"prompt": "tied?", "completion": '{"n": 1}'}, {"prompt": "Tied", "completion": '{"n": 2}'}]  # 61, 62
    rows += [{"prompt": "voted", "completion": c} for c in ('{"n": 2}', '{"n": 1}', '{"n":1}')]  # 63, 64, 65
    result = curated(tmp_path, rows, "extract")
    assert lines(result, "contradiction") == [(61, 62), (62, 61), (63, 64)]
    assert lines(result, "exact_duplicate") == [(65, 64)]
    evidence = next(d.evidence for d in result.dropped if d.line == 61)
    assert '{"n": 1}' in evidence and '{"n": 2}' in evidence and "line 62" in evidence
    assert adds_up(result)


def test_contradictions_can_be_kept_and_are_then_reported(tmp_path):
    rows = [*filler(60, "a"), {"prompt": "x", "completion": "a"}, {"prompt": "x", "completion": "b"}]
    result = curated(tmp_path, rows, "classify", curate={"contradictions": "keep"})
    assert not result.dropped
    assert [(f.code, f.line) for f in result.faults if f.code == "contradiction"] == [
        ("contradiction", 61),
        ("contradiction", 62),
    ]


def test_open_tasks_may_have_several_answers_unless_they_exclude_each_other(tmp_path):
    long = "The restaurant by the river serves {} food and is rather cheap."
    rows = filler(60)
    rows += [{"prompt": "describe", "completion": long.format(kind)} for kind in ("good", "fine Italian")]  # 61, 62
    rows += [{"prompt": "capital?", "completion": city} for city in ("Canberra", "Sydney")]  # 63, 64
    rows += [{"prompt": "when?", "completion": f"It was built by the old king in {y}."} for y in (1901, 1910)]  # 65, 66
    result = curated(tmp_path, rows)
    assert lines(result, "contradiction") == [(63, 64), (64, 63), (65, 66), (66, 65)]
    assert [(f.code, f.line) for f in result.faults] == [("several_answers", 61)]
    math = [{"prompt": "sum?", "completion": f"{way}\n#### 4"} for way in ("2+2 is", "1+3 is")]
    assert not curated(tmp_path, [*filler(60, "#### {i}"), *math], "math").dropped


def test_over_long_rows_say_how_much_answer_would_be_lost(tmp_path):
    rows = filler(60)
    rows[4]["completion"] = "word " * 30
    write(tmp_path, rows)
    result = curate(config(), tmp_path, limits=[RowLimit("m", word_lengths, 20, 20)])
    assert [(d.code, d.line) for d in result.dropped] == [("too_long", 5)]
    # 7 prompt words and 30 + 1 answer tokens against 20.
    evidence = "38 tokens, the context of m is 20: 18 of 31 answer tokens would be lost"
    assert result.dropped[0].evidence == evidence
    assert adds_up(result)


def test_a_row_keeps_to_the_limits_of_every_tokenizer(tmp_path):
    """A long context with a wasteful tokenizer can be tighter than a short one: 3 tokens a word against 60."""
    rows = filler(60)
    rows[4]["completion"] = "word " * 30
    write(tmp_path, rows)
    thrifty = RowLimit("thrifty", word_lengths, 50, 50)
    wasteful = RowLimit("wasteful", lambda rows: [(3 * p, 3 * a) for p, a in word_lengths(rows)], 60, 60)
    assert not curate(config(), tmp_path, limits=[thrifty]).dropped
    for limits in ([thrifty, wasteful], [wasteful, thrifty]):
        result = curate(config(), tmp_path, limits=limits)
        assert [d.line for d in result.dropped] == [5] and "the context of wasteful is 60" in result.dropped[0].evidence


@pytest.mark.parametrize("has_eval", [True, False])
def test_a_short_seq_len_does_not_make_the_test_easier(tmp_path, has_eval):
    """Held-out rows keep to the context; rows past train.seq_len leave the training rows alone."""

    def made(seed):
        return [{**row, "completion": "word " * (30 if i % 2 else 5)} for i, row in enumerate(filler(80, seed=seed))]

    write(tmp_path, made(0))
    write(tmp_path, made(1), "eval.jsonl")
    data = {"data": {"eval": "eval.jsonl"}} if has_eval else {}
    result = curate(config(**data), tmp_path, limits=[RowLimit("m", word_lengths, 100, 20)])
    totals = {
        part: [sum(pair) for pair in word_lengths(list(getattr(result, part)))] for part in ("train", "dev", "eval")
    }
    assert max(totals["train"]) <= 20 and max(totals["dev"]) <= 20
    long = sum(total > 20 for total in totals["eval"])
    assert long == 40 if has_eval else long >= 5
    reasons = {d.evidence.split(":")[0] for d in result.dropped if d.code == "too_long"}
    assert reasons and all("train.seq_len is 20" in reason for reason in reasons)
    assert adds_up(result)


def test_rows_of_the_given_eval_file_leave_the_training_rows(tmp_path):
    rows, held_out = filler(60), filler(30, seed=1)
    rows[7] = {"prompt": held_out[3]["prompt"].title(), "completion": "whatever the answer of it may be"}
    write(tmp_path, [*held_out, held_out[0]], "eval.jsonl")
    result = curated(tmp_path, rows, data={"eval": "eval.jsonl"})
    assert lines(result, "leak_into_eval") == [(8, 4)]
    assert "eval.jsonl" in next(d.evidence for d in result.dropped if d.code == "leak_into_eval")
    assert lines(result, "exact_duplicate") == [(31, 1)]
    assert len(result.eval) == 30 and adds_up(result)
    assert result.counts["rows_in"] == 91
    with pytest.raises(DataError, match=r"(?s)none\.jsonl.*nor\.jsonl"):
        curate(config(train="none.jsonl", data={"eval": "nor.jsonl"}), tmp_path)
    with pytest.raises(DataError, match=r"data\.train and data\.eval hold the same prompts"):
        curate(config(data={"eval": "train.jsonl"}), tmp_path)


def test_the_receipt_names_held_out_rows_near_to_training_rows(tmp_path):
    rows, held_out = filler(60), filler(30, seed=1)
    for number in (3, 4):
        held_out[number]["prompt"] = f"{rows[number]['prompt']} now"  # six of seven words or more
    write(tmp_path, held_out, "eval.jsonl")
    result = curated(tmp_path, rows, data={"eval": "eval.jsonl"})
    assert sorted(e.line for e in result.eval if e.id in result.measures["near_eval_ids"]) == [4, 5]
    assert any(note.startswith("2 of 30 held-out rows have a near-duplicate") for note in result.notes)
    seen = {e.user_text for e in (*result.train, *result.dev)}
    for budget in (400, 800):  # a row that is not chosen is not trained on
        few = curated(tmp_path, rows, data={"eval": "eval.jsonl"}, curate={"max_train_tokens": budget})
        seen = {e.user_text for e in (*few.train, *few.dev)}
        near = {e.id for e in few.eval if e.user_text.removesuffix(" now") in seen}
        assert set(few.measures["near_eval_ids"]) == near
    assert curated(tmp_path, rows).measures["near_eval_ids"] == []


def test_labels_are_stripped_and_odd_ones_reported(tmp_path):
    labels = ["yes"] * 30 + ["no "] * 27 + ["maybe"] * 2 + ["May-be"]
    rows = [{**row, "completion": label} for row, label in zip(filler(60), labels, strict=True)]
    result = curated(tmp_path, rows, "classify")
    assert result.labels == ("May-be", "maybe", "no", "yes")
    faults = {f.code: f for f in result.faults}
    assert faults["single_row_label"].line == 60
    assert {e.completion for e in result.train} <= set(result.labels)
    assert "labels_alike" not in faults  # "may be" and "maybe" are different words
    rows[57]["completion"] = "Yes"
    assert "labels_alike" in {f.code for f in curated(tmp_path, rows, "classify").faults}


def test_conversations_stay_on_one_side_and_are_counted(tmp_path):
    turns = [("user", "{a}"), ("assistant", "{b}"), ("user", "and {c}"), ("assistant", "{d}")]
    rows = []
    rng = random.Random(0)
    for i in range(60):
        words = dict(zip("abcd", (" ".join(rng.sample(WORDS, 4)) + f" {i}" for _ in range(4)), strict=True))
        rows.append({"messages": [{"role": r, "content": text.format(**words)} for r, text in turns]})
    result = curated(tmp_path, rows, "chat")
    assert result.counts["rows_in"] == 60 and result.counts["rows_expanded"] == 60 and adds_up(result)
    sides = [{e.line for e in part} for part in (result.train, result.dev, result.eval)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_sampling_lists_what_it_leaves(tmp_path):
    rows = [{**row, "completion": "ab"[i % 2]} for i, row in enumerate(filler(200))]
    result = curated(tmp_path, rows, "classify", curate={"max_train_rows": 60, "max_eval_rows": 20})
    assert len(result.train) == 60 and len(result.eval) == 20
    assert sum(e.completion == "a" for e in result.train) == 30
    assert sum(e.completion == "a" for e in result.eval) == 10
    assert {d.code for d in result.dropped} == {"not_sampled"} and adds_up(result)


def test_contradictions_by_rule_show_both_lines_and_what_differs(tmp_path):
    rows = filler(60)
    rows += [{"prompt": "capital of Kenya?", "completion": city} for city in ("Nairobi", "Nairobi", "Mombasa")]  # 61-63
    result = curated(tmp_path, rows)
    assert lines(result, "contradiction") == [(63, 61)]
    evidence = next(d.evidence for d in result.dropped if d.code == "contradiction")
    assert "line 61 answers 'Nairobi' (2)" in evidence and "differing: 'Mombasa' / 'Nairobi'" in evidence
    dropped = curated(tmp_path, rows, curate={"contradictions": "drop"})
    assert lines(dropped, "contradiction") == [(61, 63), (62, 63), (63, 61)]
    kept = curated(tmp_path, rows, curate={"contradictions": "keep"})
    assert [f.line for f in kept.faults if f.code == "contradiction"] == [63]
    assert all(map(adds_up, (result, dropped, kept)))


def test_near_repeats_and_near_contradictions(tmp_path):
    asked = ["How do I change the pin of my card", "please, how do I change the pin of my card"]
    rows = [{"prompt": p, "completion": "change_pin"} for p in asked]  # 1, 2
    rows += [{"prompt": "please tell me how I top up my account today", "completion": "top_up"}]  # 3
    rows += [{"prompt": "tell me please how I top up my account today", "completion": "cash"}]  # 4
    rows += [{**row, "completion": "ab"[i % 2]} for i, row in enumerate(filler(60))]
    result = curated(tmp_path, rows, "classify")
    assert lines(result, "near_duplicate") == [(2, 1)]
    assert [f.line for f in result.faults if f.code == "near_contradiction"] == [3, 4]  # one to one: a tie
    voted = curated(tmp_path, [*rows, rows[2]], "classify")
    assert lines(voted, "near_contradiction") == [(4, 3)]
    dropped = curated(tmp_path, rows, "classify", curate={"contradictions": "drop"})
    assert lines(dropped, "near_contradiction") == [(3, 4), (4, 3)]
    kept = curated(tmp_path, rows, "classify", curate={"drop_duplicates": False, "contradictions": "keep"})
    assert not kept.dropped and all(map(adds_up, (result, voted, dropped, kept)))
    for number, row in enumerate(rows[:2]):  # one question under two instructions is two
        row["system"] = f"You are clerk number {number}."
    assert not lines(curated(tmp_path, rows, "classify"), "near_duplicate")


def test_decisions_of_a_review_are_carried_out_and_carried_over(tmp_path):
    rows = filler(60)
    rows += [dict(rows[0]), {"prompt": "bad one", "completion": "something wrong here"}]  # 61, 62
    rows += [{"prompt": "odd", "completion": "N/A"}, {"prompt": "capital?", "completion": "Sydney"}]  # 63, 64
    rows += [{"prompt": "capital?", "completion": "Canberra"}]  # 65
    write(tmp_path, rows)
    first = curate_into(tmp_path / "data", config(), tmp_path)
    assert first["dropped_by_code"] == {"contradiction": 2, "exact_duplicate": 1, "placeholder_answer": 1}
    folder = tmp_path / "data"
    known = {
        json.loads(line)["line"]: json.loads(line)["id"] for line in (folder / "dropped.jsonl").read_text().splitlines()
    }
    known[62] = next(e.id for e in read_curated(folder).train + read_curated(folder).eval + read_curated(folder).dev
                     if e.line == 62)  # fmt: skip
    decided = {62: ("drop", ""), 63: ("fix", "a good answer"), 64: ("fix", "Canberra"), 65: ("keep", "")}
    lines_out = [f"{known[line]},{action},{answer}" for line, (action, answer) in decided.items()]
    (folder / "review.csv").write_text("id,decision,corrected_answer\n" + "\n".join(lines_out) + "\n")
    second = curate_into(folder, config(), tmp_path)
    assert second["dropped_by_code"] == {"exact_duplicate": 1, "dropped_in_review": 1}
    result = read_curated(folder)
    answers = {e.line: e.completion for e in (*result.train, *result.dev, *result.eval)}
    assert answers[63] == "a good answer" and answers[64] == answers[65] == "Canberra"
    assert [f.line for f in result.faults if f.code == "corrected_in_review"] == [63, 64]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    curate_into(folder, config(), tmp_path)  # the new review.csv holds the same decisions
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    write(tmp_path, rows[:62])
    with pytest.raises(DataError, match=r"review\.csv:\d+: no row with id"):
        curate_into(folder, config(), tmp_path)


def test_redaction_and_a_budget_of_tokens(tmp_path):
    rows = [{**row, "prompt": f"{row['prompt']} mail jo{i}@gmail.com"} for i, row in enumerate(filler(60))]
    result = curated(tmp_path, rows)
    assert sum(f.code == "personal_email" and f.repair == "ask" for f in result.faults) == 60
    redacted = curated(tmp_path, rows, curate={"redact": True})
    assert all("<EMAIL>" in e.user_text for e in redacted.train) and {f.repair for f in redacted.faults} == {"safe"}
    few = curated(tmp_path, filler(200), curate={"max_train_tokens": 1500})
    assert {d.code for d in few.dropped} == {"not_chosen"} and adds_up(few)
    assert few.measures["choice"]["coverage"]["num_tokens"] <= 1500


@pytest.mark.parametrize("kind", ["generate", "classify"])
def test_a_budget_of_tokens_leaves_dev_and_held_out_rows_as_they_are(tmp_path, kind):
    rows = [{**row, "completion": "abc"[i % 3] if kind == "classify" else "fine"} for i, row in enumerate(filler(300))]
    whole = curated(tmp_path, rows, kind)
    few = curated(tmp_path, rows, kind, curate={"max_train_tokens": 800})
    assert few.eval == whole.eval and few.dev == whole.dev and adds_up(few)
    assert set(few.train) < set(whole.train) and few.counts["dropped"] == len(whole.train) - len(few.train)
    with pytest.raises(DataError, match=r"usable training rows remain.*raise curate.max_train_tokens"):
        curated(tmp_path, rows, kind, curate={"max_train_tokens": 100})


# ---------------------------------------------------------------- refusals and files


def test_too_few_rows_are_refused_with_the_reasons(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": "" if i % 2 else "a fine answer to it"} for i in range(30)]
    with pytest.raises(DataError, match=r"15 usable training rows remain, at least 20 are needed \(dropped: 15 empty"):
        curated(tmp_path, rows)
    with pytest.raises(DataError, match=r"task.kind: extract expects JSON"):
        curated(tmp_path, filler(60), "extract")
    with pytest.raises(DataError, match=r"curate.eval_rows = 50 leaves 10 of 60 rows"):
        curated(tmp_path, filler(60), curate={"eval_rows": 50})


def test_what_is_written_is_read_back_and_guarded(tmp_path):
    rows = [*filler(60), filler(60)[0], {"prompt": "half \ud83d", "completion": "ok then, this is it"}]
    result = curated(tmp_path, rows)
    write_curated(result, tmp_path / "data")
    assert read_curated(tmp_path / "data") == result
    receipt = json.loads((tmp_path / "data" / "receipt.json").read_text())
    assert receipt["dropped_by_code"] == {"exact_duplicate": 1}
    assert receipt["counts"] == result.counts and set(receipt["sha256"]) >= {"train.jsonl", "dropped.jsonl"}
    with (tmp_path / "data" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="changed since it was curated"):
        read_curated(tmp_path / "data")
    (tmp_path / "data" / "train.jsonl").unlink()
    with pytest.raises(DataError, match="missing"):
        read_curated(tmp_path / "data")


def test_progress_is_told(tmp_path):
    told = []
    write(tmp_path, filler(60))
    curate(config(), tmp_path, progress=lambda label, done, total: told.append((label, done, total)))
    assert len({label for label, _, _ in told}) >= 4
    assert all(total is None or done <= total for _, done, total in told)
