"""A newcomer's way through the page in a real browser: on a phone's window and a desk's, light and dark.

Skipped where there is no Chromium (scripts/install_chromium.sh) or no Playwright.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from report_folder import write_run as write_finished

from bench.page import served
from shoestring.evaluate.judge.labels import read_labels
from shoestring.files import write_jsonl
from shoestring.recipe import Run
from shoestring.runfolder import RunFolder

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("SHOESTRING_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = {"phone": (390, 844), "desk": (1440, 900)}
PATIENCE_MS = 240_000  # a machine that does other things too is slow
OPEN_ALL = "for (const one of document.querySelectorAll('details')) one.open = true"
SCRIPT = "<img src=x onerror=\"document.title='planted'\"><script>document.title='planted'</script>"

ROW = "#label [name=id]"
JUDGED = """
name: judged
task: {kind: generate, metric: chrf, bar: 0.9}
data: {train: rows.jsonl}
models: shoestring-1m
budget_usd: 1
curate: {eval_rows: 20}
decide: {arms: [zero_shot], max_rows: 20}
judge:
  criteria: [It names the hall., It is short.]
  endpoints:
  - {name: none, base_url: "http://127.0.0.1:9/v1", model: m, api_key_env: "",
     usd_per_million_input_tokens: 1, usd_per_million_output_tokens: 1}
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: scripts/install_chromium.sh")


@dataclass
class Window:
    """One browser window on the page, and what went wrong in it."""

    page: Any
    base: str
    wrong: list[str] = field(default_factory=list)

    def goto(self, path: str) -> None:
        self.page.goto(self.base + path)

    def text(self) -> str:
        return str(self.page.inner_text("main"))


@dataclass
class Finished:
    """The run after the whole way, and the windows."""

    name: str
    drop: str  # address of its dropped file
    windows: dict[str, Window]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie; one of them has answers to label, by two criteria."""
    folder = tmp_path_factory.mktemp("page")
    rows = [{"prompt": f"Where is lamp {i}?", "completion": f"Lamp {i} is in hall {i % 7}."} for i in range(80)]
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "judged.yaml").write_text(JUDGED)
    Run.from_file(folder / "judged.yaml", runs_dir=folder / "runs").execute(until="decide")
    return folder / "runs"


@pytest.fixture(scope="module")
def windows(runs_dir: Path) -> Iterator[dict[str, Window]]:
    """`shoestring ui` as a process, and a window of each width on it."""
    started = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "ui", "--runs-dir", str(runs_dir), "--json", "--no-open"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert started.stdout is not None
        url = json.loads(b"".join(iter(started.stdout.readline, b"}\n")) + b"}")["url"]
        with playwright.sync_playwright() as driver, contextlib.ExitStack() as stack:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            stack.callback(browser.close)
            found = {}
            for name, (width, height) in WIDTHS.items():
                page = browser.new_context(viewport={"width": width, "height": height}).new_page()
                page.set_default_timeout(PATIENCE_MS)
                window = found[name] = Window(page, url.partition("/?")[0])
                page.on("pageerror", lambda error, window=window: window.wrong.append(str(error)))
                page.on("console", lambda said, window=window: _note(window, said))
                page.goto(url)
            yield found
    finally:
        for folder in runs_dir.glob("*/"):  # a run outlives the page
            holder = RunFolder(folder).holder()
            if holder is not None:
                os.kill(holder.pid, signal.SIGKILL)
        started.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(30)
        started.kill()
        started.wait()
        started.stdout.close()


def _note(window: Window, said: Any) -> None:
    if said.type == "error" and "422" not in said.text:  # what the page refuses on purpose
        window.wrong.append(said.text)


@pytest.fixture(scope="module")
def finished(windows: dict[str, Window], runs_dir: Path) -> Finished:
    """Drop banking77, see its faults, start, see the curve move, kill, resume, see the verdict, chat."""
    phone, desk = windows["phone"], windows["desk"]
    for window in windows.values():  # both drop the file and see what it is; the phone's is started
        window.page.click("text=New run")
        window.page.set_input_files("#data", str(ROOT / "examples" / "banking77" / "train.csv.gz"))
        window.page.wait_for_selector("[data-chosen]:has-text('train.csv.gz')")
        window.page.click("text=Look at it")
        window.page.wait_for_selector("text=carriage return and line feed", state="attached")
        window.page.wait_for_load_state()
        assert "10,003" in window.text() and "only 77 different ones" in window.text()
        assert re.search(r"Mended\n+1 in all", window.text())
    drop = phone.page.url.removeprefix(phone.base)
    phone.page.fill("#name", "bank")
    phone.page.fill("#models", "shoestring-1m")
    phone.page.fill("#bar", "0.1")
    phone.page.fill("#budget_usd", "1")
    phone.page.click("summary:has-text('Use fewer rows')")
    phone.page.fill("#max_train_rows", "160")
    phone.page.fill("#max_eval_rows", "40")
    phone.page.check("[name=trains_anyway]")
    phone.page.click("text=Start the run")
    phone.page.wait_for_url("**/runs/bank")
    desk.goto("/runs/bank")
    labels = {name: _curve_moves(window) for name, window in windows.items()}
    assert all(len(set(seen)) == 2 for seen in labels.values()), labels
    os.kill(json.loads((runs_dir / "bank" / ".holder.json").read_text())["pid"], signal.SIGKILL)
    for window in windows.values():
        window.page.wait_for_selector("#now:has-text('stopped without a word')")
    desk.page.click("button:has-text('Resume')")
    for window in windows.values():
        window.page.wait_for_selector("#now:has-text('running')")
    for window in windows.values():
        window.page.wait_for_selector(".verdict .state:has-text('Bar')")
    return Finished("bank", drop, windows)


def _curve_moves(window: Window) -> list[str]:
    """What the live curve says of itself at two times."""
    curves = window.page.locator("#live-curves")
    curves.wait_for()
    first = str(curves.get_attribute("aria-label"))
    window.page.wait_for_function(
        "was => document.getElementById('live-curves').getAttribute('aria-label') !== was", arg=first
    )
    assert window.page.locator("#live-curves canvas").count() == 2
    return [first, str(curves.get_attribute("aria-label"))]


def test_from_a_dropped_file_to_a_verdict(finished: Finished, runs_dir: Path) -> None:
    record = json.loads((runs_dir / "bank" / "ladder.json").read_text())["result"]
    for window in finished.windows.values():
        state = window.page.inner_text(".verdict .state")
        assert state == ("Bar met" if record["met"] else "Bar not met")
        window.goto("/")
        window.page.wait_for_selector(
            f"tr:has-text('bank'):has-text('{'bar met' if record['met'] else 'bar not met'}')"
        )
        assert window.wrong == []


def test_a_chat_with_base_and_adapter_side_by_side(finished: Finished) -> None:
    for name, window in finished.windows.items():
        window.goto("/runs/bank/try")
        if name == "phone":
            window.page.click("text=Load the models")
        window.page.wait_for_selector("#question")
        assert window.page.locator("[data-model]").evaluate_all("all => all.map(one => one.dataset.model)") == [
            "shoestring-1m",
            "bank",
        ]
        window.page.click("[data-sample] >> nth=0")
        asked = window.page.input_value("#question")
        window.page.fill("#max_tokens", "24")
        window.page.keyboard.press("Enter")
        for number in (0, 1):
            window.page.wait_for_selector(f"[data-model] >> nth={number} >> .speed:has-text('tokens a second')")
        said = window.page.locator(".bubble").all_inner_texts()
        assert said[0] == said[2] == asked and all(said[1::2])
        assert window.wrong == []
    finished.windows["phone"].page.click("text=Give the memory back")
    finished.windows["phone"].page.wait_for_selector("text=Load the models")


def test_no_page_is_wider_than_its_window(finished: Finished) -> None:
    for window in finished.windows.values():
        for path in _pages(finished):
            window.goto(path)
            window.page.evaluate(OPEN_ALL)
            wider = window.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider <= 0, (path, window.page.viewport_size)
        assert window.wrong == []


def _pages(finished: Finished) -> list[str]:
    of_run = (
        "",
        "/outputs",
        "/data",
        "/data/rows?code=near_duplicate",
        "/check",
        "/plan?requests_per_month=1e5",
        "/try",
    )
    own = (f"/runs/{finished.name}{path}" for path in (*of_run, "/try"))
    return ["/", "/new", finished.drop, *own, "/runs/judged", "/runs/judged/label"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(finished: Finished, scheme: str) -> None:
    """axe-core's rules of WCAG 2.1 A and AA, each fold open."""
    axe = pytest.importorskip("axe_playwright_python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text()
    window = finished.windows["desk"]
    window.page.emulate_media(color_scheme=scheme)
    found = []
    for path in _pages(finished):
        window.goto(path)
        window.page.evaluate(OPEN_ALL)
        window.page.evaluate(source)
        result = window.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for one in result["violations"]:
            if one["impact"] in ("serious", "critical"):
                found.append((path, one["id"], one["nodes"][0]["html"][:160], len(one["nodes"])))
    assert not found, "\n".join(map(str, found))


def test_markup_in_rows_is_not_carried_out(finished: Finished, tmp_path: Path) -> None:
    rows = tmp_path / "planted.csv"
    quoted = SCRIPT.replace('"', '""')
    lines = [f'"{quoted} {i}",{"ab"[i % 2]}' for i in range(60)]
    rows.write_text("\n".join(["text,label", f'"{quoted}",a,extra', *lines]))
    window = finished.windows["desk"]
    window.goto("/new")
    window.page.set_input_files("#data", str(rows))
    window.page.click("text=Look at it")
    window.page.wait_for_selector("text=ragged row")
    window.page.wait_for_load_state()
    assert window.page.locator("main img, main script").count() == 0
    assert "planted" not in window.page.title().replace("planted.csv", "") and "onerror" in window.text()
    window.page.click("text=See the plan and prices first")
    window.page.wait_for_selector("text=Where to train")
    window.page.wait_for_load_state()
    assert window.page.locator("main img, main script").count() == 0 and window.wrong == []


def test_answers_are_labelled_by_the_keyboard_alone(windows: dict[str, Window], runs_dir: Path) -> None:
    labels = runs_dir / "judged" / "labels.jsonl"
    for window in windows.values():
        labels.unlink(missing_ok=True)
        window.goto("/runs/judged/data")
        window.page.click("text=Label answers")
        window.page.wait_for_url("**/label")
        seen = []

        def press(key: str, window: Window = window, seen: list[str] = seen) -> None:
            """A key that brings another row."""
            seen.append(window.page.input_value(ROW))
            window.page.keyboard.press(key)
            window.page.wait_for_function(f"was => document.querySelector('{ROW}').value !== was", arg=seen[-1])

        window.page.keyboard.type("yn")  # one question after the other
        press("k")
        assert "1 of 100 labelled" in window.text()
        window.page.keyboard.press("k")  # no question is answered
        window.page.wait_for_selector("#told:has-text('answer each question')")
        press("s")
        window.page.focus("#act-undo")
        press("Enter")
        window.page.wait_for_selector("#act-undo:focus")
        assert "1 of 100 labelled" in window.text()
        press("u")
        assert window.page.input_value(ROW) == seen[0] and "0 of 100 labelled" in window.text()
        assert [label.said for label in read_labels(labels)] == [[True, False], "skipped", None, None]
        assert window.wrong == []


def test_a_page_says_that_its_server_is_gone(windows: dict[str, Window], tmp_path: Path) -> None:
    write_finished(tmp_path / "done", until="curate")
    with served(tmp_path) as (url, pid):
        page = windows["desk"].page.context.browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url.replace("/?", "/runs/done?"))
        page.wait_for_function("() => !!document.querySelector('[data-events]').closeEvents")
        assert page.locator("#told").is_hidden()
        os.kill(pid, signal.SIGKILL)
        page.wait_for_selector("#told:has-text('moves no more')")
        page.close()


def test_the_dials_of_the_plan_answer_the_keyboard(finished: Finished) -> None:
    window = finished.windows["desk"]
    window.goto("/runs/bank/plan")
    slider = window.page.get_by_role("slider", name="Requests a month")
    slider.focus()
    before = window.page.input_value("#requests_per_month")
    for _ in range(30):
        slider.press("ArrowLeft")
    after = window.page.input_value("#requests_per_month")
    assert before == "" and float(after) > 0
    window.page.wait_for_selector("#told-plan:has-text('requests a month')")


def test_a_decision_is_saved_without_leaving_the_page(finished: Finished, runs_dir: Path) -> None:
    window = finished.windows["phone"]
    window.goto("/runs/bank/data/rows?code=near_duplicate")
    card = window.page.locator("article.of-code").first
    card.get_by_role("button", name="Keep").click()
    card.get_by_text("from the next curation on").wait_for()
    assert card.get_by_role("button", name="Keep").get_attribute("aria-pressed") == "true"
    assert ",keep," in (runs_dir / "bank" / "data" / "review.csv").read_text("utf-8-sig")
