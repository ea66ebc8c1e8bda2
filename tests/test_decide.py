"""Baselines and the verdict: prompts read by eye, shots never from the held-out rows, advice that is concrete."""

from __future__ import annotations

import dataclasses
import json

import pytest

from shoestring.config import TaskConfig
from shoestring.decide.baselines import choose_shots, few_shot_prompts, instruction_for, run_arm, zero_shot_prompts
from shoestring.decide.linear import linear_arm
from shoestring.decide.verdict import verdict
from shoestring.errors import DataError
from shoestring.records import ArmScore, Completion, Estimate, Example, FarScore, Message, RowScore

CLASSIFY = TaskConfig(kind="classify", bar=0.8)


def row(text: str, answer: str, *, system: str = "", line: int = 0) -> Example:
    messages = (Message("user", text), Message("assistant", answer))
    messages = (Message("system", system), *messages) if system else messages
    return Example(messages, (len(messages) - 1, len(messages)), "t.jsonl", line)


def words(messages: tuple[Message, ...]) -> int:
    return sum(len(m.content.split()) for m in messages)


# Instructions and prompts


def test_instructions_come_from_the_task_or_the_training_rows() -> None:
    train = [row("x", "refund"), row("y", "card")]
    assert instruction_for(CLASSIFY, train, None) == "Classify the text. Answer with exactly one of: card, refund"
    assert instruction_for(CLASSIFY, train, ("a", "b")).endswith("one of: a, b")
    own = TaskConfig(kind="classify", bar=0.8, instruction="Which queue?\n")
    assert instruction_for(own, train, None) == "Which queue?\n"
    assert "one SQL query" in instruction_for(TaskConfig(kind="sql", bar=0.5), [], None)


def test_the_extraction_instruction_names_keys_that_are_not_rare() -> None:
    answers = [{"city": "Rome", "when": {"day": 1}, "items": [{"n": 1}]} for _ in range(39)] + [
        {"rare": 1, "city": "x"}
    ]
    train = [row(str(i), json.dumps(a)) for i, a in enumerate(answers)]
    text = instruction_for(TaskConfig(kind="extract", bar=0.5), train, None)
    assert text.endswith("Keys: city, when.day, items[].n")


def test_the_instruction_goes_before_a_system_prompt_of_the_data() -> None:
    plain, with_system = zero_shot_prompts([row("hi", "a"), row("hi", "a", system="Be brief.")], "Classify.")
    assert plain == (Message("system", "Classify."), Message("user", "hi"))
    assert with_system == (Message("system", "Classify.\n\nBe brief."), Message("user", "hi"))
    (same,) = zero_shot_prompts([row("hi", "a", system="Classify. Be brief.")], "Classify.")
    assert same[0].content == "Classify. Be brief."


def test_few_shot_prompts_by_hand() -> None:
    train = [row("one", "a", system="S"), row("two", "b", system="S")]
    prompts, num_shots = few_shot_prompts([row("new", "a", system="S")], train, "Do.", 2, words, 100, 10, 0)
    (prompt,) = prompts
    assert num_shots == 2
    assert prompt[0] == Message("system", "Do.\n\nS") and prompt[-1] == Message("user", "new")
    turns = [(m.role, m.content) for m in prompt[1:-1]]
    pairs = [[("user", "one"), ("assistant", "a")], [("user", "two"), ("assistant", "b")]]
    assert turns in (pairs[0] + pairs[1], pairs[1] + pairs[0])


def test_shots_are_dropped_until_the_longest_prompt_fits() -> None:
    train = [row(f"w{i} w w w w", f"label{i % 2}") for i in range(8)]
    examples = [row("short", "label0"), row("a b c d e f g h", "label1")]
    # Longest bare prompt: 1 + 8 words; each shot 6; 30 - 5 leave room for two.
    prompts, num_shots = few_shot_prompts(examples, train, "Do.", 4, words, 30, 5, 0)
    assert num_shots == 2
    assert [words(p) for p in prompts] == [1 + 12 + 1, 1 + 12 + 8]
    assert few_shot_prompts(examples, train, "Do.", 4, words, 12, 5, 0)[1] == 0


def test_shots_are_the_same_each_time_cover_labels_and_are_never_held_out() -> None:
    train = [row(f"text {i}", "abcd"[i % 4]) for i in range(40)]
    shots = choose_shots(train, 4, seed=1)
    assert shots == choose_shots(train[::-1], 4, seed=1) != choose_shots(train, 4, seed=2)
    assert sorted(s.completion for s in shots) == ["a", "b", "c", "d"]
    held_out = frozenset(e.id for e in train[:36])
    assert {s.id for s in choose_shots(train, 10, 1, exclude=held_out)} == {e.id for e in train[36:]}
    assert choose_shots([], 4, seed=0) == []


def test_shots_of_free_text_are_unlike_each_other() -> None:
    train = [row(f"the same old words again number {i}", f"answer {i}") for i in range(30)]
    train += [row("wholly different matter", "blue"), row("yet another thing", "green")]
    chosen = {s.completion for s in choose_shots(train, 3, seed=0)}
    assert {"blue", "green"} <= chosen


def test_an_arm_is_timed_priced_and_scored() -> None:
    examples = [row("one", "a"), row("two", "b")]

    def parrot(prompts, progress):
        progress("generate", len(prompts), len(prompts))
        return [Completion("a", words(p), 1, 0.01, cost_usd=0.5) for p in prompts]

    arm = run_arm(
        arm="parrot", kind="endpoint", model="m", examples=examples, prompts=zero_shot_prompts(examples, "Do."),
        generate=parrot, task=CLASSIFY, labels=("a", "b"), price_usd_per_hour=3600.0, details={"num_shots": 0},
    )  # fmt: skip
    assert arm.score.value == 0.5 and arm.rows[0].num_prompt_tokens == 2
    assert arm.cost_usd == pytest.approx(1.0 + arm.wall_s)


# The linear baseline


def test_the_linear_arm_learns_and_is_scored_like_any_other() -> None:
    train = [row(f"please {verb} my card {i}", verb) for i in range(12) for verb in ("block", "order", "track")]
    held_out = [row(f"could you {verb} it", verb) for verb in ("block", "order", "track")]
    arm = linear_arm(train, held_out, CLASSIFY, ("block", "order", "track"), 0, price_usd_per_hour=1.0)
    assert arm.kind == "linear" and arm.score.value == 1.0 and arm.score.low < 0.6
    assert arm.wall_s > 0 and arm.cost_usd == pytest.approx(arm.wall_s / 3600)
    again = linear_arm(train, held_out, CLASSIFY, ("block", "order", "track"), 0)
    assert [r.output for r in again.rows] == [r.output for r in arm.rows]


def test_the_linear_arm_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match="no field of the training answers"):
        linear_arm([row("x", "{}")], [row("x", "{}")], TaskConfig(kind="extract", bar=0.5), None, 0)
    with pytest.raises(DataError, match="1 distinct labels"):
        linear_arm([row("x", "a")], [row("y", "a")], CLASSIFY, ("a",), 0)


# The verdict


def arm(
    name: str,
    kind: str,
    value: float,
    low: float,
    high: float,
    cost_usd: float = 0.0,
    num_rows: int = 100,
    num_cut: int = 0,
) -> ArmScore:
    estimate, details = Estimate(value, low, high), {"num_cut": num_cut}
    return ArmScore(name, kind, "m", "accuracy", estimate, num_rows, 1.0, cost_usd, {}, "wilson", (), details)


def test_the_cheapest_baseline_that_surely_meets_the_bar_wins() -> None:
    arms = [
        arm("big", "endpoint", 0.95, 0.90, 0.98, cost_usd=1.0),
        arm("few", "few_shot", 0.90, 0.83, 0.95, cost_usd=0.1),
        arm("zero", "zero_shot", 0.85, 0.77, 0.91, cost_usd=0.01),
    ]
    got = verdict(arms, CLASSIFY)
    assert (got.met, got.arm, got.kind, got.bar) == (True, "few", "few_shot", 0.8)
    assert "cheapest of 2 arms" in got.reason and "$1.00 a thousand rows" in got.reason
    assert "train_anyway" in got.next_step


def test_a_bar_met_thanks_to_rows_like_those_trained_on_is_said() -> None:
    tuned = arm("3m", "finetune", 0.88, 0.81, 0.93)
    below = dataclasses.replace(tuned, far=FarScore(40, Estimate(0.6, 0.45, 0.74)))
    got = verdict([below], CLASSIFY)
    assert got.met
    assert "on the 40 of them that no training row is near to it scores 0.600 (0.450 to 0.740)" in got.reason
    for far in (None, FarScore(0, None), FarScore(40, Estimate(0.75, 0.6, 0.86))):
        assert "no training row" not in verdict([dataclasses.replace(tuned, far=far)], CLASSIFY).reason


def test_the_simplest_wins_at_equal_cost_and_a_baseline_before_a_fine_tune() -> None:
    sure = (0.9, 0.85, 0.95)
    arms = [arm("tuned", "finetune", *sure), arm("linear", "linear", *sure), arm("zero", "zero_shot", *sure)]
    assert verdict(arms, CLASSIFY).arm == "zero"
    assert verdict(arms[:2], CLASSIFY).kind == "linear"
    assert verdict(arms[:1], CLASSIFY).kind == "finetune"


def test_the_first_rung_that_meets_the_bar_wins_though_a_later_one_is_better() -> None:
    arms = [
        arm("zero", "zero_shot", 0.3, 0.2, 0.4),
        arm("1m", "finetune", 0.7, 0.6, 0.78),
        arm("3m", "finetune", 0.88, 0.81, 0.93, cost_usd=9.0),
        arm("5m", "finetune", 0.95, 0.9, 0.98),
    ]
    got = verdict(arms, CLASSIFY)
    assert (got.met, got.arm, got.kind) == (True, "3m", "finetune")
    assert "best baseline, zero, scores 0.300" in got.reason and "1 cheaper rung did not" in got.reason
    assert got.next_step == "export it: shoestring export RUN"


def test_no_baseline_meets_the_bar_so_train() -> None:
    got = verdict([arm("zero", "zero_shot", 0.3, 0.2, 0.4), arm("linear", "linear", 0.7, 0.61, 0.78)], CLASSIFY)
    assert (got.met, got.arm, got.kind) == (False, "linear", "none")
    assert "no baseline meets the bar" in got.reason and "0.100 below the bar 0.8" in got.reason
    assert got.next_step.startswith("train, smallest rung first")


def test_a_score_over_the_bar_whose_interval_is_not_says_how_many_rows_would_settle_it() -> None:
    got = verdict([arm("tuned", "finetune", 0.84, 0.76, 0.90)], CLASSIFY)
    assert not got.met and got.reason.startswith("cannot tell at 100 rows")
    assert "about 400 rows would settle it" in got.reason and "score about 400 held-out rows (now 100)" in got.next_step
    assert "decide.max_rows" not in got.next_step
    assert "decide.max_rows" in verdict([arm("zero", "zero_shot", 0.84, 0.76, 0.90)], CLASSIFY).next_step
    close = verdict([arm("linear", "linear", 0.801, 0.72, 0.87)], CLASSIFY)
    assert "about 660,000 rows would settle it" in close.reason and close.next_step.startswith("too close to settle")
    tie = verdict([arm("tuned", "finetune", 0.80, 0.72, 0.87)], CLASSIFY)
    assert "at the very score" in tie.reason and "no number of rows" in tie.next_step


def test_advice_after_a_fine_tune_below_the_bar() -> None:
    zero = arm("zero", "zero_shot", 0.3, 0.2, 0.4)
    near = verdict([zero, arm("5m", "finetune", 0.76, 0.68, 0.84)], CLASSIFY)
    assert near.advice == "cannot_tell" and "inside the interval; about 400 rows" in near.reason
    assert "larger model" in near.next_step
    cut = verdict([zero, arm("5m", "finetune", 0.5, 0.4, 0.6, num_cut=30)], CLASSIFY)
    assert cut.next_step.startswith("raise task.max_new_tokens (30% of the answers")
    assert "shoestring train" not in cut.next_step and cut.next_step.endswith("or lower task.bar")
    short = arm("5m", "finetune", 0.01, 0.0, 0.05, num_cut=30)
    short = dataclasses.replace(short, details={**short.details, "num_steps": 12})
    assert verdict([zero, short], CLASSIFY).next_step.index(
        "raise train.num_epochs for 5m (12 steps are few), raise task"
    )
    rising = dataclasses.replace(
        arm("5m", "finetune", 0.6, 0.5, 0.7), details={"num_steps": 900, "is_best_at_end": True}
    )
    assert "the dev score was best at the last step" in verdict([zero, rising], CLASSIFY).next_step
    worse = verdict([arm("linear", "linear", 0.7, 0.6, 0.75), arm("5m", "finetune", 0.5, 0.4, 0.6)], CLASSIFY)
    assert "did not beat linear (5m: 0.500" in worse.next_step
    failed = tuple(RowScore(str(i), "", "", "", 0.0, 1, 1, 0.0, 0.0, "invalid label 'x'") for i in range(20))
    unusable = dataclasses.replace(arm("5m", "finetune", 0.5, 0.4, 0.6), rows=failed)
    assert "(20% of its answers were unusable)" in verdict([unusable], CLASSIFY).next_step


def test_no_advice_to_train_what_is_trained() -> None:
    tuned = arm("5m", "finetune", 0.5, 0.4, 0.6)
    for best in (arm("linear", "linear", 0.84, 0.76, 0.90), arm("linear", "linear", 0.80, 0.72, 0.87)):
        assert "shoestring train RUN" in verdict([best], CLASSIFY).next_step
        assert "shoestring train" not in verdict([best, tuned], CLASSIFY).next_step
    met = verdict([arm("linear", "linear", 0.95, 0.9, 0.98), tuned], CLASSIFY)
    assert met.next_step == "use linear as it was measured; the fine-tunes are not needed to meet the bar"


def test_a_tie_at_zero_names_no_arm() -> None:
    got = verdict([arm("zero", "zero_shot", 0.0, 0.0, 0.04), arm("5m", "finetune", 0.0, 0.0, 0.04)], CLASSIFY)
    assert got.arm is None and got.reason == "no arm scored above 0 on 100 rows; the bar is 0.8"
    assert "did not beat" not in got.next_step


def test_nothing_measured() -> None:
    got = verdict([], CLASSIFY)
    assert (got.met, got.arm, got.kind, got.score) == (False, None, "none", None)
    assert got.next_step
