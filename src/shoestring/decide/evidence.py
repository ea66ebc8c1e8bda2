"""What the measured arms of one model say of each other: do passages add, do examples add, is the form missing.

Facts that are missing come with passages, a form that is missing comes with examples; which of the two a task lacks
decides between retrieval, fine-tuning and both. All comparisons are paired, on the rows both arms answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..evaluate.paired import paired_difference
from ..evaluate.statistics import detectable_difference
from ..records import ArmScore, Difference, to_json
from ..units import usd

# Share of answers cut or unusable from which the form is called missing.
NOTABLE_FRAC = 0.05
BARE, SHOWN = ("zero_shot", "instruction"), ("few_shot", "nearest")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Paired differences of the arms of the best model; None where one of the two was not measured."""

    passages: Difference | None  # RAG over the bare prompt
    examples: Difference | None  # the better few-shot prompt over the bare one
    instruction: Difference | None  # the chosen instruction over the derived one
    tuning: Difference | None  # the best fine-tune over the best prompt of any model
    tuned_passages: Difference | None  # a fine-tune with passages over the same model's without
    unusable_frac: float  # of the answers of the best prompting arm, with passages where those add
    formless: str  # that arm's name
    detectable_difference: float  # smaller ones stay unseen on so many rows

    @property
    def facts_missing(self) -> bool:
        """Whether passages surely add."""
        return _adds(self.passages)

    @property
    def form_missing(self) -> bool:
        """Whether examples surely add, or answers are unusable."""
        return _adds(self.examples) or self.unusable_frac >= NOTABLE_FRAC

    def lines(self) -> list[str]:
        """Each comparison in a sentence."""
        told = (
            ("passages of the documents", self.passages),
            ("examples in the prompt", self.examples),
            ("the chosen instruction", self.instruction),
            ("fine-tuning", self.tuning),
            ("passages in training and prompts", self.tuned_passages),
        )
        lines = [_told(what, found) for what, found in told if found is not None]
        if self.unusable_frac > 0:
            lines.append(f"{self.unusable_frac:.0%} of the answers of {self.formless} were unusable")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The comparisons and what follows from them."""
        return {
            **{k: to_json(getattr(self, k)) for k in self.__slots__},
            "facts_missing": self.facts_missing,
            "form_missing": self.form_missing,
        }


def evidence(arms: Sequence[ArmScore], seed: int = 0) -> Evidence:
    """What the arms say; of several models that of the one whose prompting scores best. arms: at least one."""
    prompting = [arm for arm in arms if style(arm) in (*BARE, *SHOWN, "rag")]
    best = max(prompting, key=lambda arm: arm.score.value, default=None)
    own = [arm for arm in prompting if best is not None and arm.model == best.model]
    bare, shown, rag = _best(own, BARE), _best(own, SHOWN), _best(own, ("rag",))
    tuned = [arm for arm in arms if arm.kind == "finetune"]
    with_passages = _best_of([arm for arm in tuned if "retrieval" in arm.details])
    without = _best_of([arm for arm in tuned if "retrieval" not in arm.details])
    passages = _difference(rag, bare, seed)
    formless = (rag if _adds(passages) else bare) or best or arms[0]
    return Evidence(
        passages=passages,
        examples=_difference(shown, bare, seed),
        instruction=_difference(_best(own, ("instruction",)), _best(own, ("zero_shot",)), seed),
        tuning=_difference(_best_of(tuned), best, seed),
        tuned_passages=_difference(with_passages, without, seed),
        unusable_frac=sum(row.failure is not None for row in formless.rows) / max(1, len(formless.rows)),
        formless=formless.arm,
        detectable_difference=detectable_difference(min(arm.num_rows for arm in arms)),
    )


def style(arm: ArmScore) -> str:
    """How an arm asks: its kind, of an endpoint's arm what its details say."""
    return str(arm.details.get("style", arm.kind)) if arm.kind == "endpoint" else arm.kind


def break_even_rows(trained: ArmScore, other: ArmScore) -> float | None:
    """Requests from which training and answering cost less than the other arm does; None where they never do."""
    trained_s, eval_s = trained.details.get("train_s"), trained.details.get("eval_s")
    if not trained_s or not eval_s:
        return None
    train_usd = trained.cost_usd * trained_s / (trained_s + eval_s)
    row_usd = (trained.cost_usd - train_usd) / trained.num_rows
    saved_usd = other.cost_usd / other.num_rows - row_usd
    return train_usd / saved_usd if saved_usd > 0 else None


def break_even_line(trained: ArmScore, other: ArmScore) -> str:
    """From which number of requests on the fine-tune is the cheaper of two arms that meet the bar."""
    rows = break_even_rows(trained, other)
    if rows is None:
        return f"{trained.arm} meets it too and is never cheaper" if trained.details.get("train_s") else ""
    return (
        f"{trained.arm} meets it too, and is cheaper from {rows:,.0f} requests on "
        f"({other.arm}: {usd(other.cost_usd / other.num_rows * 1000)} a thousand)"
    )


def _adds(found: Difference | None) -> bool:
    return found is not None and found.difference.low > 0


def _told(what: str, found: Difference) -> str:
    value, low, high = found.difference.value, found.difference.low, found.difference.high
    verb = f"{what} add" if what.split()[0] in ("passages", "examples") else f"{what} adds"
    if low > 0:
        said = f"{verb} {value:.3f}"
    elif high < 0:
        said = f"{verb.replace(' add', ' cost')} {-value:.3f}"
        low, high = -high, -low
    else:
        said = f"{verb} nothing that can be told apart from chance, {value:+.3f}"
    return f"{said} ({low:.3f} to {high:.3f}): {found.arm_a} over {found.arm_b}"


def _best(arms: Sequence[ArmScore], styles: Sequence[str]) -> ArmScore | None:
    return _best_of([arm for arm in arms if style(arm) in styles])


def _best_of(arms: Sequence[ArmScore]) -> ArmScore | None:
    return max(arms, key=lambda arm: arm.score.value, default=None)


def _difference(a: ArmScore | None, b: ArmScore | None, seed: int) -> Difference | None:
    if a is None or b is None or a.arm == b.arm:
        return None
    try:
        return paired_difference(a, b, seed=seed)
    except DataError:  # no common row
        return None
