"""The report: verdict first, everything escaped, nothing fetched, and whole from any half-finished folder."""

import dataclasses
import html.parser
import itertools
import math
import random
import re

import pytest
from report_folder import HOSTILE, write_run

from shoestring.files import read_json, write_json, write_jsonl, write_whole
from shoestring.records import Estimate
from shoestring.report.costs import log_ticks, short
from shoestring.report.curves import growth
from shoestring.report.folder import RunFiles, next_step, read_run
from shoestring.report.html import render_report
from shoestring.report.ladder import pareto, price_chart
from shoestring.report.svg import Series, arm_chart, curve_chart, nice_range, ratio_bar, share_bar, thin, ticks
from shoestring.report.text import clip, esc
from shoestring.runfolder import RunFolder

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text; asserts that every element is closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tickets"
    write_run(folder)
    return render_report(folder)


def test_verdict_comes_first(finished):
    page = Page(finished)
    text = page.text
    order = ["Use lora shoestring-3m", "Score of each arm", "Learning curves", "Data", "Predicted against actual",
             "Where it fails", "Settings and their reasons", "Environment"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    for expected in ("Bar met", "bar 0.8", "; the adapter is in", "of a budget of $0.50", "1,036 rows in",
                     "zero-shot shoestring-1m", "duplicate", "contradiction", "empty answer", "learning_rate",
                     "prefix forest", "Tinker cookbook", "0.17 USD/kWh", "2.13.0", "same top token 99.96%", "1.30×",
                     "Tokens and cost before and after", "4 labels"):  # fmt: skip
        assert expected in text, expected
    assert "Not finished" not in text


def test_nothing_runs_and_nothing_is_fetched(finished):
    page = Page(finished)
    assert not set(page.tags) & {"script", "img", "link", "iframe", "object", "embed", "audio", "video", "base", "form"}
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "href", "srcset", "action", "data"), (name, value)
    style = re.search(r"<style>(.*?)</style>", finished, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in finished


def test_hostile_rows_are_shown_as_text(finished):
    assert "<script" not in finished and "onerror=alert(1)>" not in finished
    assert '<script>alert("x")</script>' in Page(finished).text  # as words
    finished.encode("utf-8")  # no lone surrogate
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", finished)


@pytest.mark.parametrize(
    ("until", "said", "absent"),
    [
        ("curate", "next comes: decide", "Score of each arm"),
        ("decide", "next comes: plan", "Learning curves"),
        ("plan", "next comes: train shoestring-1m", "Learning curves"),
        ("half-trained", "train shoestring-1m (180 of about", "Environment: none"),
        ("train", "next comes: evaluate shoestring-1m", "lora shoestring-3m"),
    ],
)
def test_a_run_killed_half_way_says_what_is_not_done(tmp_path, until, said, absent):
    write_run(tmp_path, until=until)
    text = Page(render_report(tmp_path)).text
    assert "Not finished" in text and said in text and absent not in text


def test_empty_and_damaged_folders_still_render(tmp_path):
    text = Page(render_report(tmp_path)).text
    assert "no such run file" in text and "next comes: curate" in text
    write_run(tmp_path)
    write_whole(tmp_path / "decide.json", '{"stage": "decide", "resu')
    write_whole(tmp_path / "plan.json", '{"result": {"rungs": [{"model": "x"}], "notes": []}}')
    write_whole(tmp_path / "meta.json", "[]")
    for name, text in (("inputs.json", '{"finger'), ("steps.jsonl", '{"step": 1, "wall_s": 2.0}')):
        write_whole(tmp_path / "rungs/shoestring-3m" / name, text)
    with (tmp_path / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"at": "2026-')
    text = Page(render_report(tmp_path)).text
    assert "decide.json: cannot be read" in text
    assert "plan.json: not as this version writes it" in text
    assert "meta.json: not a record" in text
    assert "ledger.jsonl, line 10: cut by an interruption" in text
    assert "rungs: what a training under way took cannot be read" in text
    assert "Use lora shoestring-3m" in text and "lora shoestring-1m" in text  # the rungs are found in their folders


def test_a_training_done_twice_is_told_from_the_earlier_one(tmp_path):
    write_run(tmp_path)
    ledger = tmp_path / "ledger.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True)
    ledger.write_text("".join([*lines, *[line for line in lines if '"rungs/shoestring-1m/train"' in line]]))
    text = Page(render_report(tmp_path)).text
    assert text.count("shoestring-1m · train (earlier): time") == text.count("shoestring-1m · train: time") == 1


def test_report_has_a_phone_and_a_dark_layout(finished):
    assert 'name="viewport" content="width=device-width,initial-scale=1"' in finished
    assert "prefers-color-scheme:dark" in finished and "@media(max-width:560px)" in finished
    assert len(finished) < 300_000
    for svg in re.findall(r"<svg role[^>]*>", finished):
        assert 'width="100%"' in svg and "aria-label" in svg


def test_chart_geometry_by_hand(finished):
    # the chosen arm's dot stands at its score in per cent of the width
    score = re.search(r"<dt>accuracy</dt><dd>([\d.]+)<", finished).group(1)
    assert f'<circle cx="{float(score):.2%}"' in finished
    assert '<line x1="80.00%" x2="80.00%"' in finished


def test_ratio_bar_by_hand():
    bar = ratio_bar(Estimate(10, 5, 20), 40)
    # a log axis from 1/4 to 4 times: half is a quarter of the way, 4 times the end
    assert 'x="25.0%"' in bar and 'width="50.0%"' in bar and 'cx="100.0%"' in bar and "outside" in bar
    assert "inside" in ratio_bar(Estimate(10, 5, 20), 10)
    assert "circle" not in ratio_bar(Estimate(10, 5, 20), None)
    assert ratio_bar(Estimate(0, 0, 0), 1.0) == ""


def test_share_bar_by_hand():
    bar = share_bar([("a", 3, "s0"), ("b", 0, "s1"), ("c", 1, "s2")])
    assert re.findall(r'x="([\d.]+%)" y="0" width="([\d.]+%)"', bar) == [("0.000%", "75.000%"), ("75.000%", "25.000%")]


def test_curves_survive_any_numbers():
    assert "nothing recorded" in curve_chart("loss", [Series("a", [], "a")])
    assert "nothing recorded" in curve_chart("loss", [Series("a", [(1, float("nan"))], "a")])
    for points in ([(5, 2.0)], [(1, 0.0), (2, 0.0)], [(1, 1e-9), (9, 1e9)], [(1, float("inf")), (2, 1.0)]):
        chart = curve_chart("loss", [Series("a", points, "a", dots=True)], level=("bar", 0.5), mark=("best", 2))
        assert "nan" not in chart and "inf" not in chart
    assert arm_chart([], 0.5, None).startswith("<svg")


def test_thin_keeps_the_mean_and_ticks_are_round():
    points = [(float(i), float(i % 7)) for i in range(1001)]
    thinned = thin(points)
    assert len(thinned) <= 240 and thinned[0][1] == pytest.approx(sum(i % 7 for i in range(5)) / 5)
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert nice_range([0.2, 3.0])[0] == 0 and nice_range([5, 5])[0] < 5 < nice_range([5, 5])[1]


def test_ticks_of_a_logarithmic_axis_are_round_and_apart():
    assert log_ticks(0, 1, 0.1) == [1, 2, 5, 10]
    assert log_ticks(-5, 3, 0.1) == [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10, 100, 1000]
    assert log_ticks(-5, 3, 0.2) == [1e-4, 0.01, 1, 100]
    assert log_ticks(math.log10(31), math.log10(39), 0.1) == [32.5, 35, 37.5]
    assert [short(v, "$") for v in (1e-5, 0.0005, 2.5, 20_000, 1e6)] == ["$0.00001", "$0.0005", "$2.5", "$20k", "$1M"]
    rng = random.Random(5)
    for _ in range(300):
        low, apart = rng.uniform(-6, 6), rng.choice([0.05, 0.1, 0.2])
        high = low + rng.choice([0.05, 0.5, 2, 6, 12])
        powers = [math.log10(value) for value in log_ticks(low, high, apart)]
        assert powers and low - 1e-6 <= powers[0] and powers[-1] <= high + 1e-6
        if high - low >= 2:
            assert all(b - a >= apart * (high - low) - 1e-6 for a, b in itertools.pairwise(powers))


def test_text_by_hand():
    assert esc("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert esc("a\x00\ud800b") == "a\ufffd\ufffdb"
    assert clip("abcdef", 3) == "abc … (6 characters)"
    assert "\x00" in HOSTILE


def change(path, edit):
    record = read_json(path)
    edit(record["result"])
    write_json(path, record)


def test_rows_of_conversations_add_up(tmp_path):
    write_run(tmp_path, until="curate")
    counts = {"rows_in": 200, "rows_expanded": 200, "rows_train": 200, "rows_dev": 32, "rows_eval": 60, "dropped": 108}
    change(tmp_path / "curate.json", lambda r: r.update(counts=counts, dropped_by_code={"not_sampled": 108}))
    text = Page(render_report(tmp_path)).text
    assert "200 rows in, 400 examples" in text and "292 kept, 108 dropped" in text and "27.0%" in text


def test_the_next_step_can_be_followed(tmp_path):
    folder = tmp_path / "my runs"
    verdict = {"kind": "finetune", "model": "m", "next_step": "export it: shoestring export RUN"}
    assert next_step(verdict, folder, None) == f"export it: shoestring export '{folder}'"
    exported = {"adapter_dir": "rungs/m/adapter", "merged_dir": "export/merged", "merge_check": {"passed": True}}
    told = next_step(verdict, folder, exported)
    where = f"the adapter is in {folder}/rungs/m/adapter, merged weights in {folder}/export/merged"
    assert told == f"serve it: shoestring serve '{folder}'; {where}"
    assert "serve the adapter" in next_step(verdict, folder, {**exported, "merge_check": {"passed": False}})
    assert "shoestring export" in next_step({**verdict, "model": "n"}, folder, exported)
    write_run(folder, until="plan")
    assert f"shoestring run '{folder}'" in Page(render_report(folder)).text


def test_a_tie_at_zero_has_no_best_arm(tmp_path):
    write_run(tmp_path, until="decide")

    def to_zero(result):
        for arm in result["arms"]:
            arm["score"] = {"value": 0.0, "low": 0.0, "high": 0.02}

    change(tmp_path / "decide.json", to_zero)
    reason = "no arm scored above 0 on 200 rows; the bar is 0.8"
    verdict = {"met": False, "arm": None, "kind": "none", "model": None, "reason": reason, "next_step": ""}
    write_json(tmp_path / "ladder.json", {"result": verdict})
    page = Page(render_report(tmp_path))
    assert "No arm met the bar; none scored above 0" in page.text and "No arm scored above 0 on 200" in page.text
    assert "Predicted against actual" not in page.text and "Expenses" in page.text  # nothing was trained


def test_a_failed_row_of_a_chat_shows_the_turns_before(tmp_path):
    write_run(tmp_path, until="decide")
    row_ids = [row["id"] for row in read_json(tmp_path / "decide.json")["result"]["arms"][0]["rows"]]
    turns = [("system", "Be brief. " * 50), ("user", "first question"), ("assistant", "first answer"), ("user", "last")]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "x")]]
    write_jsonl(
        tmp_path / "data" / "eval.jsonl",
        [{"id": row_id, "messages": messages, "answer_span": [4, 5]} for row_id in row_ids] + [{"id": 1}],
    )
    text = Page(render_report(tmp_path)).text
    assert "first answer" in text and "(500 characters)" in text and "system" in text


def test_scores_on_far_rows_stand_beside_the_whole(tmp_path):
    write_run(tmp_path / "run")
    assert "far rows" not in render_report(tmp_path / "run")
    path = tmp_path / "run/decide.json"
    record = read_json(path)
    record["result"]["arms"][0]["far"] = {"num_rows": 120, "score": {"value": 0.611, "low": 0.52, "high": 0.69}}
    write_json(path, record)
    page = render_report(tmp_path / "run")
    assert "on far rows" in page and "0.611" in page and "0.520–0.690, 120 rows" in page


def test_the_pareto_line_joins_what_no_cheaper_arm_equals(tmp_path):
    """By hand: b costs more than a and scores less, d the same as c for more: the line is a, c."""
    write_run(tmp_path)
    arm = read_run(tmp_path).arms[0]
    costs = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (3.0, 0.7), "d": (4.0, 0.7)}
    arms = [
        dataclasses.replace(arm, arm=name, cost_usd=usd, score=Estimate(score, score - 0.1, score + 0.1))
        for name, (usd, score) in costs.items()
    ]
    assert [one.arm for one in pareto(arms)] == ["a", "c"]
    run = RunFiles(tmp_path, baselines=arms)
    text = price_chart(run)
    assert text.count('class="pareto"') == 2 and "Score over dollars: 1 a; 2 b; 3 c; 4 d" in text
    assert price_chart(RunFiles(tmp_path, baselines=arms[:1])) == ""
    free = [dataclasses.replace(one, cost_usd=0.0) for one in arms]
    assert price_chart(RunFiles(tmp_path, baselines=free)) == ""


def test_the_predicted_band_of_a_learning_curve_is_drawn_and_told(tmp_path):
    write_run(tmp_path)
    points = [{"num_rows": n, "score": s, "num_scored": 80} for n, s in ((88, 0.3), (175, 0.5), (350, 0.6))]
    band = {"value": 0.7, "low": 0.62, "high": 0.78}
    curve = {"points": points, "forecast": {"num_rows": 700, "measured": band}}
    RunFolder(tmp_path).finish("rungs/shoestring-1m/curve.json", "f" * 16, curve, 1.0)
    text = growth(read_run(tmp_path))
    assert text.count('class="point b"') == 3 and text.count('class="foretold"') == 1
    assert "0.700 (0.620 to 0.780)" in text and "bar 0.8" in text and ">88<" in text and ">700<" in text
    assert "Would more rows help?" in render_report(tmp_path)


def test_arms_measured_so_far_are_shown_while_decide_works(tmp_path):
    write_run(tmp_path, until="decide")
    arms = read_json(tmp_path / "decide.json")["result"]["arms"]
    (tmp_path / "decide.json").unlink()
    RunFolder(tmp_path).finish("decide/linear.json", "f" * 16, {"arm": arms[0], "skipped": ""}, 1.0)
    RunFolder(tmp_path).finish("decide/few.json", "f" * 16, {"arm": None, "skipped": "no rows"}, 1.0)
    for with_rows in (True, False):
        run = read_run(tmp_path, with_rows)
        assert [arm.arm for arm in run.arms] == ["linear"] and run.decided is None and not run.problems
