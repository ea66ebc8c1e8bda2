"""Near-duplicates and near-contradictions: what goes, what stays, and that nothing but the rows decides it."""

import random
import subprocess
import sys

import numpy as np
import pytest

from shoestring.data.candidates import candidates, encode_rows, typing_errors
from shoestring.data.difference import Guard, Meaning, is_typo
from shoestring.data.near import near_rows, semantic_pairs
from shoestring.records import no_progress

TOPICS = ["card", "account", "transfer", "statement", "refund", "passport", "mortgage", "invoice", "pension", "deposit"]
VERBS = ["cancel", "renew", "open", "check", "block", "export", "print", "archive"]
PLACES = ["Oslo", "Lisbon", "Nairobi", "Quito", "Harbin"]


def many_rows():
    """400 different requests."""
    return [f"How do I {v} my {t} at the branch in {p}?" for v in VERBS for t in TOPICS for p in PLACES]


def found(prompts, answers=None, kind="classify", **more):
    answers = answers or ["same"] * len(prompts)
    near = near_rows(prompts, answers, kind=kind, progress=no_progress, **more)
    return [(p.first, p.second) for p in near.duplicates], [(p.first, p.second) for p in near.contradictions]


def test_nothing_is_merged_among_rows_that_differ_in_a_word():
    assert found(many_rows()) == ([], [])


@pytest.mark.parametrize(
    "edited",
    [
        "how do i cancel my card at the branch in oslo",
        "Ηοw dο Ι cаncel my card at the branch in Oslo?",
        "How do I cancle my card at the branch in Oslo?",
        "How do I cancle my card at the brunch in Oslo?",
        "How do I cancel my card at the main branch in Oslo?",
        "How do I cancel card at the branch in Oslo?",
        "Hello! Could you please tell me how do I cancel my card at the branch in Oslo? Thanks a lot.",
        "At the branch in Oslo, how do I cancel my card?",
        "How do I cancel my card at thebranch in Oslo?",
    ],
)
def test_an_edited_row_goes_for_the_first(edited):
    prompts = [*many_rows(), edited]
    assert found(prompts) == ([(0, 400)], [])
    assert found([edited, *many_rows()]) == ([(0, 1)], [])


@pytest.mark.parametrize(
    "counterfactual",
    [
        "How do I not cancel my card at the branch in Oslo?",
        "How do I cancel my card at the branch in Tallinn?",
        "How do I cancel my 2 card at the branch in Oslo?",
        "How can't I cancel my card at the branch in Oslo?",
        "Who cancels my card at the branch in Oslo?",
    ],
)
def test_a_counterfactual_stays_even_with_the_same_answer(counterfactual):
    assert found([*many_rows(), counterfactual]) == ([], [])


def test_another_answer_makes_it_a_contradiction():
    prompts = ["How do I cancel my old card?", "Please, how do I cancel my old card", "how do i cancel my old crad"]
    prompts += many_rows()
    answers = ["cancel", "renew", "cancel", *["other"] * 400]
    assert found(prompts, answers) == ([(0, 2)], [(0, 1)])
    # A word more may be the reason for another answer.
    prompts[1] = "How do I cancel my old blue card?"
    assert found(prompts, answers) == ([(0, 2)], [])


def test_answers_are_compared_as_the_kind_asks():
    prompts = ["What is the capital of the old kingdom?", "what is the capital of the old kingdom"]
    assert found(prompts, ["Lisbon", "lisbon."], "generate") == ([(0, 1)], [])
    assert found(prompts, ["Lisbon", "Porto"], "generate") == ([], [(0, 1)])
    long = "A long answer about the history of the town and of its people, {} of them."
    assert found(prompts, [long.format(5), long.format(5) + " Thanks"], "generate") == ([(0, 1)], [])
    assert found(prompts, [long.format(5), long.format(6)], "generate") == ([], [(0, 1)])
    assert (
        found(prompts, [long.format(5), "Something quite different can be said of this old town."], "generate")[1] == []
    )
    assert found(prompts, ["so it is #### 12", "then it is #### 12"], "math") == ([], [])
    assert found(prompts, ["so it is #### 12", "so it is #### 13"], "math") == ([], [(0, 1)])
    assert found(prompts, ['{"a": 1, "b": "X"}', '{"b": "x", "a": 1}'], "extract") == ([(0, 1)], [])


def test_the_row_that_stays_is_never_one_that_went():
    prompts = ["List all the open orders of Smith"] + [
        f"{'please ' * i}list all open orders of smith" for i in range(1, 30)
    ]
    duplicates, _ = found(prompts)
    gone = {j for _, j in duplicates}
    assert len(gone) == 29 and not any(i in gone for i, _ in duplicates)


def test_pairs_are_those_a_comparison_of_all_rows_finds():
    """Candidates leave nothing out that the guard would take for the same, words out of order apart."""
    rng = random.Random(1)
    prompts = many_rows()[::4]
    for row in range(60):
        words = prompts[row].split()
        if rng.random() < 0.5:
            words.insert(rng.randint(1, 5), rng.choice(["really", "old", "blue", "please", "not", "7"]))
        else:
            at = rng.choice([i for i, w in enumerate(words) if len(w) > 3 and w.isalpha() and w.islower()])
            words[at] = words[at][:2] + words[at][3] + words[at][2] + words[at][4:]
        prompts.append(" ".join(words))
    rng.shuffle(prompts)
    rows = encode_rows(prompts, no_progress)
    guard = Guard(dict(zip(rows.vocabulary, np.bincount(rows.ids_T).tolist(), strict=True)))
    gone: dict[int, int] = {}
    for j in range(len(prompts)):
        for i in range(j):
            if i not in gone and j not in gone and guard.compare(rows.words(i), rows.words(j)).meaning > Meaning.OTHER:
                gone[j] = i
    assert len(gone) > 25 and found(prompts) == ([(i, j) for j, i in gone.items()], [])


def test_long_rows_may_differ_in_several_places():
    rng = random.Random(2)
    vocabulary = ["".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(4)) for _ in range(500)]
    texts = [" ".join(rng.sample(vocabulary, 60)) for _ in range(50)]
    words = texts[7].split()
    longer = " ".join([*words[:10], "bluish", *words[10:40], "oldish", *words[40:], "newish"])
    assert found([*texts, longer]) == ([(7, 50)], [])
    assert found([*texts, longer.replace(words[20], "other")]) == ([], [])


def test_typing_errors_are_those_a_comparison_of_all_words_finds():
    rng = random.Random(3)
    vocabulary = sorted({"".join(rng.choices("abcd", k=rng.randint(3, 7))) for _ in range(300)})
    counts = np.array([rng.choice([1, 1, 2, 30, 200]) for _ in vocabulary])
    wrong, meant = typing_errors(vocabulary, counts)
    pairs = {tuple(sorted(pair)) for pair in zip(wrong.tolist(), meant.tolist(), strict=True)}
    wanted = {
        (i, j)
        for j in range(len(vocabulary))
        for i in range(j)
        if is_typo(vocabulary[i], vocabulary[j], int(counts[i]), int(counts[j]))
    }
    assert len(wanted) > 50 and pairs == wanted


def test_encoded_rows_have_the_words_of_each_text():
    rows = encode_rows(["I don't know", "", "Pay 1,000 to Bob", "we pay Bob"], no_progress)
    assert [rows.words(i) for i in range(4)] == [
        ["i", "do", "not", "know"],
        [],
        ["pay", "1000", "to", "bob"],
        ["we", "pay", "bob"],
    ]
    assert [w for w, is_name in zip(rows.vocabulary, rows.is_name_V, strict=True) if is_name] == ["bob"]


@pytest.mark.parametrize(
    "prompts", [[], ["alone"], ["", ""], ["?", "!", ""], ["\ud800 odd", "\ud800 odd"], ["\x00"] * 3]
)
def test_odd_rows_do_no_harm(prompts):
    duplicates, contradictions = found(prompts)
    assert not contradictions and all(i < j for i, j in duplicates)


def test_the_same_rows_give_the_same_pairs_in_another_process():
    """Hash seeds and processor counts differ between processes and machines; the result must not."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_data_near import *; rows = many_rows();"
        "print(found([*rows, *(r.replace('ancel', 'ancle') for r in rows[::3]), *('please ' + r for r in rows)]))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "src", "OMP_NUM_THREADS": threads},
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }  # fmt: skip
    assert len(outputs) == 1 and len(outputs.pop()) > 1000


def test_an_encoder_adds_pairs_the_guard_still_checks():
    prompts = ["cancel my old card", "terminate my old card", "cancel my 5 old cards", "terminate my 6 old cards", "hi"]
    vectors = {"cancel": (1, 0.1), "terminate": (1, 0.2), "hi": (0, 1)}

    def encode(texts):
        return np.array([vectors[text.split()[0]] for text in texts])

    assert semantic_pairs(prompts, encode, no_progress) == {(i, j) for j in range(4) for i in range(j)}
    assert found(prompts)[0] == []
    assert found(prompts, encode=encode)[0] == [(0, 1)]


def test_templates_do_not_make_all_pairs():
    prompts = [f"please send the parcel with the number {i} to my new address in the old town" for i in range(3000)]
    rows = encode_rows(prompts, no_progress)
    first, _ = candidates(rows, np.bincount(rows.ids_T), no_progress)
    assert len(first) < 10
    prompts = [
        f"what is the name of the {i % 60} king and of the {i // 60} queen of the old country" for i in range(3000)
    ]
    assert found(prompts) == ([], [])
