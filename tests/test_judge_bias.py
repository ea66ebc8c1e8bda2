"""Judges of a known defect on a loopback server: each defect is named, a fair judge is not accused, no row is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.config import EndpointConfig, JudgeConfig
from shoestring.data.language import language
from shoestring.data.safety import refusal
from shoestring.decide.answers import AnswerFile
from shoestring.decide.client import Client
from shoestring.evaluate.judge.bias import Bias, Endpoint, padded, probe
from shoestring.evaluate.judge.checks import Senses
from shoestring.evaluate.judge.kin import against_others
from shoestring.evaluate.judge.scoring import judge_rows
from shoestring.evaluate.judge.verdicts import Judge
from shoestring.files import read_whole_lines
from shoestring.records import Completion, no_progress
from tests.judge_server import JudgeServer, rows

ROWS = rows(20)
USD_IN, USD_OUT = 1.0, 2.0
NO_BIAS = Bias("j", "m", 20, None, None, None, None, None, 0, 0, 0, 0, 0.0, {}, 0.0)


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve():
    servers = []

    def start(defect: str, **more) -> JudgeServer:
        servers.append(JudgeServer(defect, ROWS, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def connected(server: JudgeServer, folder: Path, mode: str) -> tuple[JudgeConfig, Judge, Endpoint, Client]:
    endpoint = EndpointConfig(
        name=server.defect, base_url=server.url, model="scripted", api_key_env="", num_parallel=8,
        usd_per_million_input_tokens=USD_IN, usd_per_million_output_tokens=USD_OUT,
        timeout_s=0.4 if server.defect == "slow" else 10,
    )  # fmt: skip
    config = JudgeConfig(endpoints=[endpoint], mode=mode)
    client = Client(endpoint, AnswerFile(folder / "answers.jsonl"), config.max_new_tokens, backoff_s=0.005)
    judge = Judge(server.defect, "scripted", lambda prompts, progress: client.generate(prompts, progress))
    return config, judge, Endpoint(endpoint.timeout_s, lambda: dict(Counter(client.troubles))), client


def probed(server: JudgeServer, folder: Path, mode: str) -> tuple[Bias, Client]:
    config, judge, endpoint, client = connected(server, folder, mode)
    return probe(config, judge, endpoint, ROWS, refusal, no_progress), client


DEFECTS = [
    ("always_first", "pairwise", {"prefers_first", "no_better_than_chance"}),
    ("always_yes", "rubric", {"says_yes", "no_better_than_chance"}),
    ("longest", "pairwise", {"prefers_longer", "no_better_than_chance"}),
    ("longest", "rubric", {"prefers_longer", "no_better_than_chance"}),
    ("self_lover", "pairwise", {"prefers_own"}),
    ("self_lover", "rubric", {"prefers_own"}),
    ("coin", "pairwise", {"inconsistent", "no_better_than_chance"}),
    ("coin", "rubric", {"inconsistent", "no_better_than_chance"}),
    ("malformed", "rubric", {"unreadable"}),
    ("refusing", "pairwise", {"refuses"}),
    ("rate_limited", "rubric", {"rate_limited"}),
    ("slow", "rubric", {"slow"}),
    ("dropping", "pairwise", {"drops_connections"}),
]


@pytest.mark.parametrize(("defect", "mode", "named"), DEFECTS)
def test_each_defect_is_named_and_nothing_else(serve, tmp_path, defect, mode, named) -> None:
    server = serve(defect)
    bias, client = probed(server, tmp_path, mode)
    assert {defect.code for defect in bias.named} == named, bias
    assert all(defect.evidence and defect.advice for defect in bias.named)
    # Every completion that the server gave is in the file with its price; none is asked for or paid twice.
    kept = [line["answer"] for line in read_whole_lines(client.answers.path)]
    assert server.num_billed >= len(kept)
    if defect not in ("slow", "dropping"):  # there a reply may be given and never arrive
        assert server.num_billed == len(kept)
    usd = sum(c["num_prompt_tokens"] * USD_IN + c["num_completion_tokens"] * USD_OUT for c in kept) / 1e6
    assert client.answers.spent_usd() == pytest.approx(usd)


@pytest.mark.parametrize("mode", ["rubric", "pairwise"])
def test_other_judges_see_who_favours_its_own_and_a_lenient_one_is_not_accused(serve, tmp_path, mode) -> None:
    def named(*defects: str) -> list[set[str]]:
        made = [connected(serve(d, own=f"{n}: "), tmp_path / f"{n}{d}", mode) for n, d in enumerate(defects)]
        judges = [judge for _, judge, _, _ in made]
        blank = [replace(NO_BIAS, judge=judge.name) for judge in judges]
        found = against_others(made[0][0], judges, ROWS, blank, refusal, no_progress)
        return [{defect.code for defect in bias.named} for bias in found]

    assert named("self_lover", "fair") == [{"prefers_own"}, set()]
    assert named("fair", "fair") == [set(), set()]
    assert named("fair", "always_yes", "fair") == [set(), set(), set()]
    assert named("fair") == [set()]


@pytest.mark.parametrize("mode", ["rubric", "pairwise"])
def test_a_fair_judge_that_errs_now_and_then_is_accused_of_nothing(serve, tmp_path, mode) -> None:
    bias, _ = probed(serve("fair", error_frac=0.04), tmp_path, mode)
    assert bias.named == () and bias.notes == ()
    assert bias.right_frac.value >= 0.85 and bias.num_no_verdict == 0


def test_too_few_rows_accuse_nobody(serve, tmp_path) -> None:
    config, judge, endpoint, _ = connected(serve("always_first"), tmp_path, "pairwise")
    bias = probe(config, judge, endpoint, ROWS[:5], refusal, no_progress)
    assert bias.named == () and "5 rows with different references are too few" in bias.notes[0]
    none = probe(config, judge, endpoint, [ROWS[0], ROWS[0]], refusal, no_progress)
    assert none.num_rows == none.num_asked == 0


def test_padding_says_nothing_and_at_least_doubles() -> None:
    assert padded("Short.").startswith("Short.\n\nThis has been set out") and len(padded("x" * 900)) > 1800


@pytest.mark.parametrize("defect", ["malformed", "refusing", "rate_limited", "dropping"])
def test_no_row_is_lost_and_a_second_time_costs_nothing(serve, tmp_path, defect) -> None:
    server = serve(defect)
    outputs = [e.completion + " So it is." if i % 2 else "It is kept nowhere at all." for i, e in enumerate(ROWS)]
    answers = [Completion(text, 1, 1, 0.0) for text in outputs]
    senses = Senses(language, refusal)

    def judged():
        config, judge, _, client = connected(server, tmp_path, "rubric")
        found, asked = judge_rows(config, [judge], senses, ROWS, answers, no_progress)
        return found, asked[judge.name], client

    first, asked, client = judged()
    assert len(first) == len(ROWS) == sum(row.by in ("judges", "none") for row in first)
    decided = [row for row in first if row.by == "judges"]
    assert [row.score for row in decided] == [float(i % 2) for i, row in enumerate(first) if row.by == "judges"]
    assert asked["num_no_verdict"] == len(first) - len(decided)
    assert (asked["num_no_verdict"] > 0) == (defect in ("malformed", "refusing"))
    assert asked["cost_usd"] == pytest.approx(client.answers.spent_usd())
    billed = server.num_billed
    assert judged()[0] == first and server.num_billed == billed


def test_the_bench_names_what_was_planted_in_a_small_version(tmp_path) -> None:
    from bench.judge_bias import accused, calibration, coverage, over_http

    found = over_http("self_lover", "rubric", "prefers_own", tmp_path)
    assert found["is_named"] and found["also"] == [] and found["same_again"]
    assert found["lost_rows"] == found["asked_twice"] == 0 and found["unaccounted_usd"] < 1e-9
    assert accused(0.0, "rubric", 2)["accused_frac"] == 0
    assert min(cell["coverage"] for cell in coverage(20)) >= 0.7
    told = calibration(40)
    assert told["standard_error"]["ppi"] < told["standard_error"]["labels"] and told["bias"]["judge"] < -0.02
