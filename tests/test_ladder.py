"""The climb: cheapest first, stop at the first rung whose lower bound meets the bar."""

from dataclasses import replace

from shoestring.config import TaskConfig
from shoestring.ladder import climb
from shoestring.records import ArmScore, Device, Estimate, RungPlan, TrainSettings

TASK = TaskConfig(kind="classify", bar=0.8)
DEVICE = Device("cpu", "cpu", 2**33, 2, "float32", "")
SETTINGS = TrainSettings("lora", 16, 32.0, 1e-3, 3.0, 512, 512, 128, 0.05, 0.0, 1.0, 3, 2, 2, 0, 16, {})


def rung(model: str, verdict: str = "fits") -> RungPlan:
    one = Estimate(1.0, 1.0, 1.0)
    return RungPlan(
        model, "lora", 1, 1, DEVICE, SETTINGS, one, 2**33, verdict, one, one, 1, 1, 0.01, "test", one, {}, ""
    )  # fmt: skip


def arm(model: str, value: float, low: float, kind: str = "finetune") -> ArmScore:
    return ArmScore(f"lora {model}", kind, model, "accuracy", Estimate(value, low, 1.0), 100, 1.0, 0.01, {}, "wilson")


def test_stops_at_the_first_rung_whose_lower_bound_meets_the_bar():
    scores = {"small": arm("small", 0.85, 0.77), "middle": arm("middle", 0.9, 0.83), "large": arm("large", 0.99, 0.97)}

    measured, verdict, _ = climb([rung(m) for m in scores], [], TASK, lambda r: scores[r.model])

    assert [a.model for a in measured] == ["small", "middle"]  # small's 0.85 is not enough: its interval starts at 0.77
    assert verdict.met
    assert verdict.arm == "lora middle"


def test_no_rung_meets_the_bar():
    measured, verdict, _ = climb(
        [rung("small")], [arm("small", 0.1, 0.05, "zero_shot")], TASK, lambda r: arm("small", 0.5, 0.4)
    )

    assert len(measured) == 1
    assert not verdict.met
    assert verdict.next_step


def test_a_rung_that_does_not_fit_is_passed_over():
    def measure(planned: RungPlan) -> ArmScore:
        assert planned.model == "small"
        return replace(arm("small", 0.9, 0.85))

    measured, _, _ = climb([rung("huge", "does_not_fit"), rung("small")], [], TASK, measure)

    assert [a.model for a in measured] == ["small"]
