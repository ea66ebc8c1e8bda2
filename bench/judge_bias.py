"""Judges of a planted defect: is each named, is a fair one left alone, is every row kept and every cost counted?

    python -m bench.judge_bias [--seeds 1000] [--sets 40] [--json]

planted: judges on a loopback server, asked over HTTP as `shoestring judge` does: probes, then rows, then the rows
again. named: all that was planted is in the bias report (`also` is named beside it). lost_rows, asked_twice and
unaccounted_usd are to be 0. accused: share of sets of 20 rows on which a fair judge that errs on so many texts is
accused of a bias of position, length or kin, or of saying one thing to all; that it is called weak, or inconsistent,
is no false accusation where its errors make it so. calibration: a
judge with 0.9 sensitivity and 0.8 specificity on 500 rows with 100 labels: error and 95 % coverage of the judged rate
alone, of the labels alone, of Rogan-Gladen and of the power-tuned estimate. No model takes part: verdicts are scripted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, versions
from shoestring.config import EndpointConfig, JudgeConfig
from shoestring.data.language import language
from shoestring.data.safety import refusal
from shoestring.decide.answers import AnswerFile
from shoestring.decide.client import Client
from shoestring.evaluate.judge.bias import Endpoint, probe
from shoestring.evaluate.judge.calibrate import calibrated
from shoestring.evaluate.judge.checks import Senses
from shoestring.evaluate.judge.scoring import judge_rows
from shoestring.evaluate.judge.verdicts import Judge
from shoestring.evaluate.statistics import Z_95
from shoestring.files import read_whole_lines
from shoestring.messages import Prompt, turns_of
from shoestring.records import Completion, Example, Progress, no_progress
from tests.judge_server import JudgeServer, rows

# Defect, how it is asked, and what has to be named.
PLANTED = (
    ("always_first", "pairwise", "prefers_first"),
    ("longest", "pairwise", "prefers_longer"),
    ("longest", "rubric", "prefers_longer"),
    ("self_lover", "pairwise", "prefers_own"),
    ("self_lover", "rubric", "prefers_own"),
    ("coin", "pairwise", "inconsistent"),
    ("coin", "rubric", "inconsistent"),
    ("always_yes", "rubric", "says_yes"),
    ("malformed", "pairwise", "unreadable"),
    ("malformed", "rubric", "unreadable"),
    ("refusing", "pairwise", "refuses"),
    ("refusing", "rubric", "refuses"),
    ("rate_limited", "rubric", "rate_limited"),
    ("slow", "rubric", "slow"),
    ("dropping", "rubric", "drops_connections"),
)
BIASES = {"prefers_first", "prefers_second", "prefers_longer", "prefers_own", "says_yes", "says_no"}
NUM_ROWS = 20
USD_IN, USD_OUT = 1.0, 2.0


def settings(server: JudgeServer, mode: str) -> JudgeConfig:
    endpoint = EndpointConfig(
        name=server.defect, base_url=server.url, model="scripted", api_key_env="", num_parallel=8,
        usd_per_million_input_tokens=USD_IN, usd_per_million_output_tokens=USD_OUT,
        timeout_s=0.4 if server.defect == "slow" else 10,
    )  # fmt: skip
    return JudgeConfig(endpoints=[endpoint], mode=mode)


def over_http(defect: str, mode: str, wanted: str, folder: Path) -> dict[str, Any]:
    """One planted judge, probed and put to work twice."""
    examples = rows(NUM_ROWS)
    server = JudgeServer(defect, examples)
    config = settings(server, mode)
    endpoint = config.endpoints[0]
    started = time.monotonic()
    try:
        first = _work(config, endpoint, folder, examples)
        num_asked = len(server.requests)
        second = _work(config, endpoint, folder, examples)
        asked_twice = len(server.requests) - num_asked
    finally:
        server.close()
    bias, judged, client = first
    kept = [line["answer"] for line in read_whole_lines(client.answers.path)]
    named = [defect.code for defect in bias.named]
    expected_usd = sum(c["num_prompt_tokens"] * USD_IN + c["num_completion_tokens"] * USD_OUT for c in kept) / 1e6
    return {
        "defect": defect,
        "mode": mode,
        "wanted": wanted,
        "is_named": wanted in named,
        "also": [code for code in named if code != wanted],
        "asked": bias.num_asked,
        "asked_again": bias.num_asked_again,
        "no_verdict": bias.num_no_verdict,
        "sent_again": bias.troubles,
        "lost_rows": NUM_ROWS - len(judged),
        "same_again": judged == second[1],
        "asked_twice": asked_twice,
        "unaccounted_usd": abs(client.answers.spent_usd() - expected_usd),
        "wall_s": round(time.monotonic() - started, 2),
    }


def _work(config: JudgeConfig, endpoint: EndpointConfig, folder: Path, examples: list[Example]) -> tuple[Any, Any, Any]:
    client = Client(endpoint, AnswerFile(folder / "answers.jsonl"), config.max_new_tokens, backoff_s=0.005)
    judge = Judge(endpoint.name, endpoint.model, lambda prompts, progress: client.generate(prompts, progress))
    connection = Endpoint(endpoint.timeout_s, lambda: dict(Counter(client.troubles)))
    bias = probe(config, judge, connection, examples, refusal, no_progress)
    outputs = [e.completion + " So it is." if i % 2 else "It is kept nowhere at all." for i, e in enumerate(examples)]
    answers = [Completion(text, 1, 1, 0.0) for text in outputs]
    judged, _ = judge_rows(config, [judge], Senses(language, refusal), examples, answers, no_progress)
    return bias, judged, client


def accused(error_frac: float, mode: str, num_sets: int) -> dict[str, Any]:
    """How often a fair judge is accused: the same judge without HTTP between, on sets of rows of their own."""
    every = rows(NUM_ROWS * num_sets)
    server = JudgeServer("fair", every, error_frac=error_frac)
    config = settings(server, mode)

    def generate(prompts: list[Prompt], progress: Progress) -> list[Completion]:
        answers = []
        for prompt in prompts:
            reply = server.reply(0, {"messages": turns_of(prompt, as_text=True)})
            assert reply is not None
            text = json.loads(reply[2])["choices"][0]["message"]["content"]
            answers.append(Completion(text, 1, 1, 0.0))
        return answers

    codes: Counter[str] = Counter()
    num_accused = 0
    for start in range(0, len(every), NUM_ROWS):
        judge, connection = Judge("fair", "scripted", generate), Endpoint(10, dict)
        bias = probe(config, judge, connection, every[start : start + NUM_ROWS], refusal, no_progress)
        found = {defect.code for defect in bias.named}
        codes.update(found)
        num_accused += bool(found & BIASES)
    server.close()
    frac = num_accused / num_sets
    return {"error_frac": error_frac, "mode": mode, "sets": num_sets, "accused_frac": frac, "codes": dict(codes)}


def calibration(num_seeds: int, rate: float = 0.8, num_rows: int = 500, num_labels: int = 100) -> dict[str, Any]:
    """Error and coverage of four ways to state the same rate."""
    sensitivity, specificity = 0.9, 0.8
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"judge": [], "labels": [], "rogan_gladen": [], "ppi": []}
    hits, hits_judge = 0, 0
    for _ in range(num_seeds):
        human = (rng.random(num_rows) < rate).astype(float)
        passes = rng.random(num_rows) < np.where(human == 1, sensitivity, 1 - specificity)
        judged = passes.astype(float)
        labelled, others = slice(0, num_labels), slice(num_labels, None)
        estimate = calibrated(human[labelled], judged[labelled], judged[others])
        hits += estimate.score.low <= rate <= estimate.score.high
        q = judged.mean()
        hits_judge += abs(q - rate) <= Z_95 * math.sqrt(q * (1 - q) / num_rows)
        found["judge"].append(float(q))
        found["labels"].append(float(human[labelled].mean()))
        found["rogan_gladen"].append(_rogan_gladen(human[labelled], judged[labelled], float(q)))
        found["ppi"].append(estimate.score.value)
    errors = {name: np.array(values) - rate for name, values in found.items()}
    return {
        "truth": rate,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "rows": num_rows,
        "labels": num_labels,
        "seeds": num_seeds,
        "bias": {name: round(float(e.mean()), 4) for name, e in errors.items()},
        "standard_error": {name: round(float(e.std()), 4) for name, e in errors.items()},
        "coverage_of_the_judge_alone": hits_judge / num_seeds,
        "coverage": hits / num_seeds,
    }


JUDGES = {"good": (0.97, 0.93), "fair": (0.9, 0.8), "useless": (0.5, 0.5), "perfect": (1.0, 1.0)}


def coverage(num_seeds: int) -> list[dict[str, Any]]:
    """How often the calibrated interval holds the truth, down to 30 labels and up to a rate of 0.97.

    Of a perfect judge, or where failures are so rare that few or none are among the labels, an interval that allows for
    what was not met covers more than 95 %.
    """
    cells = []
    for num_labels, num_rows in ((30, 200), (50, 500), (100, 500)):
        for rate in (0.5, 0.8, 0.9, 0.97):
            for name, (sensitivity, specificity) in JUDGES.items():
                rng = np.random.default_rng(num_labels)
                hits = 0
                for _ in range(num_seeds):
                    human = rng.random(num_rows) < rate
                    judged = rng.random(num_rows) < np.where(human, sensitivity, 1 - specificity)
                    labels, verdicts = human[:num_labels].astype(float), judged.astype(float)
                    score = calibrated(labels, verdicts[:num_labels], verdicts[num_labels:]).score
                    hits += score.low <= rate <= score.high
                cell = {"labels": num_labels, "rows": num_rows, "rate": rate, "judge": name}
                cells.append({**cell, "coverage": hits / num_seeds})
    return cells


def _rogan_gladen(human: np.ndarray, judged: np.ndarray, q: float) -> float:
    """(q + specificity - 1) / (sensitivity + specificity - 1), both rates from the labels; held to 0 and 1."""
    sensitivity = judged[human == 1].mean() if (human == 1).any() else 1.0
    specificity = 1 - judged[human == 0].mean() if (human == 0).any() else 1.0
    span = sensitivity + specificity - 1
    return float(np.clip((q + specificity - 1) / span, 0, 1)) if span > 0 else q


def measure(num_seeds: int, num_sets: int) -> dict[str, Any]:
    """Everything."""
    os.environ["no_proxy"] = "127.0.0.1"
    judges = []
    for defect, mode, wanted in PLANTED:
        with tempfile.TemporaryDirectory() as folder:
            judges.append(over_http(defect, mode, wanted, Path(folder)))
    fair = [accused(frac, mode, num_sets) for frac in (0.0, 0.02, 0.05) for mode in ("rubric", "pairwise")]
    cells = coverage(num_seeds)
    return {
        "planted": len(judges),
        "named": sum(judge["is_named"] for judge in judges),
        "lost_rows": sum(judge["lost_rows"] for judge in judges),
        "asked_twice": sum(judge["asked_twice"] for judge in judges),
        "unaccounted_usd": sum(judge["unaccounted_usd"] for judge in judges),
        "accused_frac": sum(f["accused_frac"] for f in fair) / len(fair),
        "judges": judges,
        "fair": fair,
        "calibration": calibration(num_seeds),
        "lowest_coverage": min(cells, key=lambda cell: cell["coverage"]),
        "highest_coverage": max(cells, key=lambda cell: cell["coverage"]),
        "coverage": cells,
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.seeds, given.sets)
    if given.json:
        print(json.dumps(found))
        return
    for judge in found["judges"]:
        verdict = "named" if judge["is_named"] else "MISSED"
        also = f", also {', '.join(judge['also'])}" if judge["also"] else ""
        print(f"{judge['defect']:14} {judge['mode']:9} {verdict} {judge['wanted']}{also}; {judge['wall_s']} s")
    lost = {key: found[key] for key in ("lost_rows", "asked_twice", "unaccounted_usd")}
    print(f"{found['named']} of {found['planted']} named; {lost}")
    for fair in found["fair"]:
        errs = f"fair, errs on {fair['error_frac']:.0%}, {fair['mode']}"
        print(f"{errs}: accused on {fair['accused_frac']:.1%} of {fair['sets']} sets; {fair['codes']}")
    print(json.dumps(found["calibration"], indent=1))
    print("coverage of calibrated intervals:", found["lowest_coverage"], "to", found["highest_coverage"])


if __name__ == "__main__":
    main()
