"""Wrong rows: planted label flips, unsupported and omitted values, arithmetic and disagreement are ranked first."""

import json
import random

import numpy as np
import pytest

from shoestring.data.codes import CODES
from shoestring.data.wrong import agreement, parts, wrong_arithmetic, wrong_rows
from shoestring.data.wrong.align import phrases_of, slot_shares
from shoestring.data.wrong.coverage import coverage
from shoestring.data.wrong.flat import record_in
from shoestring.data.wrong.labels import _confusions
from shoestring.demo.tickets import sample_ticket
from shoestring.records import Example, Message, no_progress


def example(prompt: str, answer: str) -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), (1, 2))


# ---- labels ---------------------------------------------------------------------------------

TOPICS = {
    "card": ("my card has not come", "the card is lost", "a new card, please", "is the card here yet", "card stolen"),
    "fee": (
        "why was I charged",
        "what is this fee",
        "you took a charge twice",
        "the fee is too high",
        "a strange charge",
    ),
    "login": ("I cannot sign in", "my password fails", "the login is locked", "reset my password", "sign in is broken"),
}


def flipped(num_rows: int = 240) -> tuple[list[Example], set[int]]:
    rng = random.Random(3)
    rows, wrong = [], set()
    for i in range(num_rows):
        label = rng.choice(sorted(TOPICS))
        text = f"{rng.choice(TOPICS[label])} {rng.choice(('today', 'now', 'since Monday', 'again', 'and hello'))}"
        if i % 20 == 7:
            label = rng.choice([other for other in sorted(TOPICS) if other != label])
            wrong.add(i)
        rows.append(example(text, label))
    return rows, wrong


def test_flipped_labels_are_found_and_nothing_else() -> None:
    rows, wrong = flipped()
    suspects = wrong_rows(rows, kind="classify")
    assert {s.index for s in suspects} == wrong
    assert all(s.code == "label_error" and 0.5 <= s.score <= 1 for s in suspects)
    first = suspects[0]
    assert f"labelled {rows[first.index].completion!r}, reads like" in first.evidence
    assert suspects == wrong_rows(rows, kind="classify", seed=5)
    assert [s.score for s in suspects] == sorted((s.score for s in suspects), reverse=True)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [example("a", "x")] * 10,
        [example("same text", "x")] * 60,
        [example("", "x"), example("", "y")] * 40,
        [example(f"word{i}", str(i)) for i in range(80)],
    ],
)
def test_sets_that_say_nothing_give_no_label_errors(rows: list[Example]) -> None:
    assert wrong_rows(rows, kind="classify") == []


def test_a_label_often_mistaken_for_another_is_doubted_sooner() -> None:
    """Of 1,000 rows labelled 1 a fifth read like 0, of 1,000 labelled 2 a single one: that one is believed."""
    y = np.repeat([0, 1, 2], 1000)
    p = np.full((3000, 3), 0.02)
    p[np.arange(3000), y] = 0.96
    p[1000:1200] = p[2000] = 0.9, 0.05, 0.05
    right = _confusions(p, y)
    assert right[1000, 0] > 0.5 and right[2000, 0] < 0.3
    assert np.allclose(right.sum(1), 1) and right[0, 0] > 0.99


# ---- records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ('{"a": 1, "b": {"c": true}, "d": null, "e": ["x", "y"]}', {"a": "1", "b.c": "true", "e": "x y"}),
        ("name[The Mill], food[Fast food]", {"name": "The Mill", "food": "Fast food"}),
        ("name: The Mill\nfood: English", {"name": "The Mill", "food": "English"}),
        ("The Mill serves food [1], and more [2].", None),
        ("just text", None),
        ("[1, 2]", None),
        ('{"a": ', None),
    ],
)
def test_flat_records(text: str, record: dict[str, str] | None) -> None:
    assert record_in(text) == record


def venues(num_rows: int = 600) -> tuple[list[tuple[str, str]], dict[int, str]]:
    """Record and text; what is wrong by row: the text leaves the area out, or serves other food."""
    rng = random.Random(1)
    food = {"French": "French", "Italian": "pasta", "English": "British"}
    area = {"riverside": ("by the river", "near the water"), "centre": ("in the middle of town", "downtown")}
    family = {"yes": "Children are welcome.", "no": "It is for adults."}
    rows, wrong = [], {}
    for i in range(num_rows):
        name = rng.choice(("Aromi", "The Mill", "Cocum", "Strada"))
        f, a, k = rng.choice(list(food)), rng.choice(list(area)), rng.choice(list(family))
        stated = {"name": name, "food": f, "area": a, "family": k}
        if rng.random() < 0.3:
            del stated["family"]
        where = f" {rng.choice(area[a])}"
        if i % 3 == 2:
            del stated["area"]
            where = ""
        elif i % 21 == 3:
            wrong[i], where = "area", ""
        elif i % 21 == 13:
            wrong[i], f = "food", rng.choice([other for other in food if other != f])
        said = f"{name} offers {food[f]} food{where}."
        if "family" in stated:
            said += f" {family[k]}"
        rows.append((", ".join(f"{key}[{value}]" for key, value in stated.items()), said))
    return rows, wrong


@pytest.mark.parametrize("is_answer", [True, False])
def test_unsupported_and_omitted_values_on_either_side(is_answer: bool) -> None:
    pairs, wrong = venues()
    rows = [example(text, record) if is_answer else example(record, text) for record, text in pairs]
    suspects = wrong_rows(rows, kind="extract" if is_answer else "generate")
    assert {s.index for s in suspects} == set(wrong)
    for suspect in suspects:
        slot = wrong[suspect.index]
        assert suspect.evidence.startswith(f"{slot}: the record says ")
        omitted_by_text = slot == "area"
        expected = "unsupported_value" if is_answer or not omitted_by_text else "omitted_value"
        assert suspect.code == expected and expected in CODES
    assert suspects == wrong_rows(rows, kind="extract" if is_answer else "generate")


def test_values_compete_for_phrases() -> None:
    """Aromi is always cheap: its name must not pass for its price."""
    texts = [f"{n} is {p} here" for n, p in [("aromi", "cheap")] * 20 + [("mill", "cheap"), ("mill", "dear")] * 20]
    values = {"name": [t.split()[0] for t in texts], "price": [t.split()[2] for t in texts]}
    found = phrases_of(texts)
    shares = slot_shares(values, found, seed=0)
    aromi, cheap = found.names.index("aromi"), found.names.index("cheap")
    assert shares["name"][aromi] > 2 * shares["price"][aromi]
    assert shares["price"][cheap] > shares["name"][cheap]


def test_of_tickets_the_planted_ones_are_found_and_no_other() -> None:
    rng = random.Random(0)
    tickets = [sample_ticket(rng) for _ in range(800)]
    rows = [example(t.prompt, t.completion) for t in tickets]
    wrong = set(rng.sample(range(800), 40))
    for i in wrong:
        product = next(t.record["product"] for t in tickets if t.record["product"] not in tickets[i].prompt)
        rows[i] = example(tickets[i].prompt, json.dumps({**tickets[i].record, "product": product}))
    assert {s.index for s in wrong_rows(rows, kind="extract")} == wrong


def test_of_few_tickets_hardly_any_is_doubted_for_words_not_yet_learned() -> None:
    rng = random.Random(0)
    rows = [example(t.prompt, t.completion) for t in (sample_ticket(rng) for _ in range(400))]
    assert len(wrong_rows(rows, kind="extract")) <= 4


@pytest.mark.parametrize("answer", ["{}", '{"a": null}', '{"a": "é"}', '{"a": ""}', '{"\\u0000": "\\u0000"}'])
def test_records_that_say_nothing_give_no_suspects(answer: str) -> None:
    assert wrong_rows([example("?!", answer)] * 80, kind="extract") == []
    assert wrong_rows([example(f"word {i}", answer) for i in range(80)], kind="extract") == []


def test_slots_that_do_not_come_from_the_text_are_left_alone() -> None:
    rng = random.Random(2)
    pairs, wrong = venues()
    rows = []
    for record, text in pairs:
        more = f"id[{rng.randrange(10**9)}], language[en], shelf[{rng.choice('ABC')}]"
        rows.append(example(f"{record}, {more}", text))
    assert {s.index for s in wrong_rows(rows, kind="generate")} == set(wrong)


def test_free_text_is_not_judged_by_records() -> None:
    rows = [example(f"question {i}", f"an answer about {i}") for i in range(100)]
    assert coverage(rows, seed=0, progress=no_progress) is None
    assert wrong_rows(rows, kind="generate") == []


# ---- arithmetic and agreement ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "48/2 = <<48/2=24>>24 clips",
        "2 x 0.5 = <<2*0.5=1.0>>1.0",
        "10/3 = 3.33, so 3 each: 10/3 = 3",
        "7/2 = 4 vans",
        "4.20+9.45+1.35=14.999999999999998",
        "20% of 50: 50*20% = 10 and 10/50 = 20%",
        "$1,250 + $850 = $2,100",
        "x + 3 * 2 = 14",
        "2x + 3*2 = 10",
        "2000 / 2/3 = 3000",
        "3 + 4 = 10 - 3",
        "5 + 5 = 1e1",
        "sun sets at 6:00+48=6:48",
        "3*30 = 30 + M",
        "$2.50 - $2.24 = 26 cents",
        "$2,430 – ($1,250 + $850) = $2,430 – $2,100",
        "on 3/4 = Monday",
        "-5 + 3 = -2",
    ],
)
def test_arithmetic_that_holds(text: str) -> None:
    assert wrong_arithmetic(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("48/2 = <<48/2=25>>25", "48/2=25, but it is 24"),
        ("So 3 * 30 = 30 in all", "3 * 30 = 30, but it is 90"),
        ("(1,250 + 850) = 2,430", "but it is 2,100"),
        ("10*(2/3)=8", "but it is 6.66667"),
        ("7 − 4 = 2", "but it is 3"),
    ],
)
def test_arithmetic_that_does_not(text: str, said: str) -> None:
    assert said in (wrong_arithmetic(text) or "")
    (suspect,) = wrong_rows([example("how many?", "1+1=2"), example("how many?", text)], kind="math")
    assert (suspect.index, suspect.code) == (1, "arithmetic")


def test_arithmetic_is_safe_on_any_input() -> None:
    for text in ("9" * 5000 + " + 1 = 3", "1/0 = 5", "(((" * 500 + "1+1=3", "1+" * 3000 + "1 = 2", "2**9**9 = 1"):
        wrong_arithmetic(text)


def test_agreement_weighs_samplers_by_their_reliability() -> None:
    """Three samplers: the first two are right nine times in ten, the third one time in ten."""
    rng = random.Random(0)
    rows, right = [], []
    for i in range(300):
        good = [rng.random() < p for p in (0.9, 0.9, 0.1)]
        rows.append([f"so #### {i if ok else 1000 + rng.randrange(10**6)}" for ok in good])
        right.append(good)
    wrong = agreement(rows, kind="math")
    assert all(wrong[i][2] > 0.9 for i in range(300) if not right[i][2])
    both = [i for i in range(300) if right[i][0] and right[i][1]]
    assert all(wrong[i][0] < 0.05 and wrong[i][1] < 0.05 for i in both)
    first, _, third = agreement([*rows, ["#### 1", "#### 2", "#### 3"]], kind="math")[-1]
    assert first < third  # nobody agrees: the reliable one is likelier right


def test_agreement_compares_numbers_by_value_and_takes_missing_answers() -> None:
    ((a, b, c),) = agreement([["A: 18", "#### 18.0", None]], kind="math")
    assert c is None and a == b < 0.5
    assert agreement([], kind="math") == []


# ---- many rows -------------------------------------------------------------------------------


def test_many_rows_are_judged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, wrong = flipped(960)
    monkeypatch.setattr(parts, "MAX_LABEL_ROWS", 300)
    monkeypatch.setattr(parts, "MIN_PART_ROWS", 300)
    divided = parts.parts_of(rows, "classify", no_progress)
    assert len(divided) == 4 and max(map(len, divided)) < 400
    assert sorted(np.concatenate(divided).tolist()) == list(range(len(rows)))
    seen: list[tuple[str, int, int | None]] = []
    suspects = wrong_rows(rows, kind="classify", progress=lambda *said: seen.append(said))
    found = {s.index for s in suspects}
    assert found <= wrong and len(found) > 0.7 * len(wrong)  # a part has a quarter of the rows to learn from
    assert [done for what, done, _ in seen if what == "looking for wrong rows"] == [
        0,
        *np.cumsum([*map(len, divided)])[:-1],
    ]
    backwards = wrong_rows(rows[::-1], kind="classify")
    assert {len(rows) - 1 - s.index for s in backwards} == found


def test_rows_of_a_rare_label_share_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_LABEL_ROWS", 300)
    monkeypatch.setattr(parts, "MIN_PART_ROWS", 300)
    rows, _ = flipped(960)
    rows += [example(f"my phone is broken {i}", "phone") for i in range(10)]
    homes = [part for part in parts.parts_of(rows, "classify", no_progress) if (part >= 960).any()]
    assert len(homes) == 1 and (homes[0] >= 960).sum() == 10


def test_records_too_are_judged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_RECORD_ROWS", 400)
    pairs, wrong = venues(700)
    rows = [example(record, text) for record, text in pairs]
    found = {s.index for s in wrong_rows(rows, kind="generate")}
    assert len(found & set(wrong)) > 0.85 * len(wrong) and len(found - set(wrong)) < 0.1 * len(wrong)
