"""What the stages ask of each other: row limits of every rung, one answer limit, arms told apart by kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.files import write_jsonl
from shoestring.recipe import Run
from shoestring.records import Completion, Message
from shoestring.stages import arms, deciding, preparing
from tests.tiny import make_model

RUN_FILE = """
name: colours
task: {kind: extract, bar: 0.9}
data: {train: rows.jsonl}
models: [small, ./same]
decide: {arms: [zero_shot], max_rows: 20}
train: {seq_len: 100}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A curated run of two models beside its run file, which share a tokenizer."""
    folder = tmp_path_factory.mktemp("stages")
    make_model(folder / "small")
    make_model(folder / "same", hidden=64)
    colours = ("red", "green", "blue")
    rows = [{"prompt": f"thing {i} is {colours[i % 3]}", "completion": f'{{"n": {i}}}'} for i in range(160)]
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "run.yaml").write_text(RUN_FILE)
    return Run.from_file(folder / "run.yaml", runs_dir=folder / "runs")


def test_models_beside_the_run_file_and_one_limit_a_tokenizer(run: Run) -> None:
    assert run.config.models == [str(run.base_dir / name) for name in ("small", "same")]
    (limit,) = preparing.row_limits(run.config)
    assert (limit.context_tokens, limit.seq_len) == (256, 100)


def test_prompts_and_fine_tunes_may_answer_equally_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    curated = run.curate()
    limits = {rung.model: rung.settings.max_new_tokens for rung in run.plan(curated).rungs}
    asked = {}

    class Silent:
        context_tokens = 256
        count_tokens = staticmethod(len)

        def generate(self, prompts, progress):
            return [Completion("{}", 1, 1, 0.0)] * len(prompts)

        def close(self) -> None:
            pass

    def load(model, *, device, max_new_tokens):
        asked[model] = max_new_tokens
        return Silent()

    monkeypatch.setattr(deciding, "load_generator", load)
    run.decide(curated)
    # '{"n": 159}' and its end token are 11 bytes, so tokens: 11 x 1.15 + 4, to a multiple of 4.
    assert asked == limits == dict.fromkeys(run.config.models, 20)


def test_an_endpoint_with_the_name_of_a_local_model_is_still_an_endpoint(run: Run) -> None:
    made = arms.Arms(run, run.curate())

    def silent(prompts, progress):
        return [Completion("{}", 1, 1, 0.0)] * len(prompts)

    for usd_per_hour, kind in ((1.0, "zero_shot"), (None, "endpoint")):
        asked = arms.Answerer("small", silent, len, 256, 8, usd_per_hour)
        arm, _ = made.measure("zero_shot", lambda asked=asked: asked, "Do.")
        assert (arm.model, arm.kind, arm.details["style"]) == ("small", kind, "zero_shot")


def test_rough_tokens_hold_in_any_script() -> None:
    """No tokenizer of today makes more than 1.5 tokens of a Chinese character; two characters a token would be 100."""
    assert deciding.rough_tokens((Message("user", "漢字" * 100),)) >= 300
    assert deciding.rough_tokens((Message("user", "plain words " * 100),)) >= 300


def test_paths_in_the_resolved_run_file_hold_from_anywhere(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run.execute(until="curate")
    monkeypatch.chdir(tmp_path)
    assert Run.from_folder(run.folder).config.models == run.config.models
