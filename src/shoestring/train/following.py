"""The watch over a training of several processes: the first one decides after each step, the others do as it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .watch import T, Watch
from .world import World


def watch_of(world: World, **parts: Any) -> Watch:
    """The Watch of this process. parts: as Watch takes them."""
    if world.size == 1:
        return Watch(**parts)
    made = (Leading if world.is_first else Following)(**parts)
    made.world = world
    return made


class Leading(Watch):
    """The first process's: records, evaluates, saves, and tells the others whether to go on."""

    world: World

    def after_step(self, step: int, loss: float, learning_rate: float, grad_norm: float) -> tuple[bool, bool]:
        save, stop = super().after_step(step, loss, learning_rate, grad_norm)
        self.world.of_first(lambda: (stop, self.leaving))
        return save, stop

    def decided(self, decide: Callable[[], T]) -> T:
        return self.world.of_first(decide)


class Following(Watch):
    """Any other's: takes part in evaluations, writes nothing."""

    world: World

    def __post_init__(self) -> None:
        self.before_s = self.state.wall_s
        self.steps_file = Path(os.devnull).open("a", encoding="utf-8")  # noqa: SIM115 - closed as Watch's is

    def decided(self, decide: Callable[[], T]) -> T:
        told: T = self.world.of_first(_unasked)
        self.world.is_left = told is not None
        return told

    def after_step(self, step: int, loss: float, learning_rate: float, grad_norm: float) -> tuple[bool, bool]:
        if step in self.eval_steps:
            self.evaluate()
        told: tuple[bool, BaseException | None] = self.world.of_first(_unasked)
        stop, self.leaving = told
        self.state.finished = stop
        if self.leaving is not None:
            self.world.is_left = True
            raise self.leaving
        return False, stop


def _unasked() -> Any:
    """What the others would decide: they never do."""
    raise AssertionError("only the first process decides")
