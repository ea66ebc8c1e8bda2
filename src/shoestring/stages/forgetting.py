"""The regression pack on a trained rung: before and after training, a record and a ledger line of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..evaluate import regression
from ..evaluate.generation import LocalGenerator, load_generator, make_generate
from ..evaluate.regression import Regression
from ..files import sha256_file
from ..records import Curated, Message, Prompt, RungPlan, TrainResult, no_progress, to_json
from ..train.adapter import folder_name
from ..train.reading import text_losses
from . import calibrating
from .common import device, rung_file
from .recorder import once

if TYPE_CHECKING:
    from ..recipe import Run


def tuned_generator(run: Run, rung: RungPlan, trained: TrainResult) -> LocalGenerator:
    """What a rung has trained, loaded once for evaluation and for this."""
    if run.loaded is None or run.loaded[0] != rung.model:
        folder = run.run_folder.rung(rung.model) / folder_name(trained.method)
        limit = rung.settings.max_new_tokens
        made = load_generator(
            rung.model,
            folder,
            method=trained.method,
            device=device(run),
            max_new_tokens=limit,
            over_all_gpus=trained.settings.get("parallelism") == "fsdp" and device(run).kind == "cuda",
        )
        run.loaded = (rung.model, made)
    return run.loaded[1]


def let_go(run: Run) -> None:
    """Give the memory of a loaded rung back."""
    if run.loaded is not None:
        run.loaded[1].close()
        run.loaded = None


def measure(run: Run, rung: RungPlan, trained: TrainResult, curated: Curated) -> None:
    """Calibration of a classifier; then the pack, unless the run file says not to. Told each time the run comes by."""
    calibrating.measure(run, rung, trained, curated, lambda: tuned_generator(run, rung, trained))
    if run.config.evaluate.regression:
        after = rung_file(rung.model, "train.json")
        name, depends_on = rung_file(rung.model, "regression.json"), sha256_file(regression.PACK)
        found = once(
            run, name, lambda: _measured(run, rung, trained), regression.from_json, after=after, depends_on=depends_on
        )
        if found.warning:
            run.log(f"Rung {rung.model}: {found.warning}")
    let_go(run)


@contextlib.contextmanager
def _base(run: Run, rung: RungPlan, trained: TrainResult, generator: LocalGenerator) -> Iterator[Any]:
    """The base alone: without its adapter, or loaded beside the model that was trained whole."""
    if trained.method != "full":
        with generator.model.disable_adapter():
            yield generator.model
        return
    loaded = load_generator(rung.model, device=device(run), max_new_tokens=rung.settings.max_new_tokens)
    try:
        yield loaded.model
    finally:
        loaded.close()


def _measured(run: Run, rung: RungPlan, trained: TrainResult) -> tuple[Any, Regression]:
    generator, pack, here = tuned_generator(run, rung, trained), regression.pack(), device(run)
    model, tokenizer = generator.model, generator.tokenizer
    run.progress(f"general text {rung.model}", 0, None)
    after = text_losses(model, tokenizer, pack.texts, here)

    def passed(asked: Any, which: list[int]) -> list[bool]:
        answer = make_generate(asked, tokenizer, max_new_tokens=regression.MAX_NEW_TOKENS)
        prompts: list[Prompt] = [(Message("user", pack.checks[i].prompt),) for i in which]
        answers = {i: c.text for i, c in zip(which, answer(prompts, no_progress), strict=True)} if which else {}
        return [i in answers and regression.passes(check, answers[i]) for i, check in enumerate(pack.checks)]

    with _base(run, rung, trained, generator) as base:
        before = text_losses(base, tokenizer, pack.texts, here)
        by_base = passed(base, list(range(len(pack.checks))))
    by_tuned = passed(model, [i for i, was in enumerate(by_base) if was])
    found = regression.compare(pack, before, after, by_base, by_tuned)
    return {"model": rung.model, **to_json(found)}, found
