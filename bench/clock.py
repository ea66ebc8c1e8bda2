"""When each optimizer step ended and what memory it took, for every trainer that is a transformers.Trainer.

Imports nothing of Shoestring's, so that it runs in a peer's own environment.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def memory_bytes(field: str) -> int | None:
    """VmRSS (resident now) or VmHWM (at most) of this process; None where /proc does not say."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class Clock:
    """Wall and processor seconds at the start of training and after each step."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.rss_bytes: int | None = None  # when training began
        self.before_bytes: int | None = None  # most that was resident before
        self.steps_bytes: int | None = None  # most that was resident by the end of the last step
        self.more_wall_s = self.more_cpu_s = 0.0  # of work that belongs to training but comes before it

    def begin(self) -> None:
        """Note what is resident, and begin the high-water mark anew where Linux lets us (proc(5), clear_refs)."""
        if self.rss_bytes is not None:
            return
        self.rss_bytes, self.before_bytes = memory_bytes("VmRSS"), memory_bytes("VmHWM")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def tick(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())

    def install(self) -> None:
        """Be called by every Trainer made in this process from here on."""
        from transformers import TrainerCallback
        from transformers.trainer import DEFAULT_CALLBACKS

        clock = self

        class Ticks(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                import torch

                clock.begin()
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                clock.tick()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                clock.tick()
                clock.steps_bytes = memory_bytes("VmHWM")

        DEFAULT_CALLBACKS.append(Ticks)

    @contextlib.contextmanager
    def counting(self, module: Any, name: str) -> Iterator[None]:
        """Inside, count what module's function of that name takes as training."""
        function = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.begin()
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            made = function(*args, **kwargs)
            self.more_wall_s += time.perf_counter() - wall_s
            self.more_cpu_s += time.process_time() - cpu_s
            return made

        setattr(module, name, counted)
        try:
            yield
        finally:
            setattr(module, name, function)

    def facts(self) -> dict[str, Any]:
        """train_s and train_cpu_s over all steps; step_s of each; peak memory of the process or the accelerator.

        train_peak_bytes: from the first step to the last; training_bytes: that above what was resident when it began.
        """
        import torch

        on_gpu = torch.cuda.is_available()
        peak = memory_bytes("VmHWM")
        before, steps = self.before_bytes or 0, self.steps_bytes
        return {
            "num_steps": len(self.wall_s) - 1,
            "train_s": self.wall_s[-1] - self.wall_s[0] + self.more_wall_s,
            "train_cpu_s": self.cpu_s[-1] - self.cpu_s[0] + self.more_cpu_s,
            "step_s": [round(b - a, 4) for a, b in zip(self.wall_s, self.wall_s[1:], strict=False)],
            "peak_bytes": None if peak is None else max(peak, before),
            "train_peak_bytes": steps,
            "training_bytes": None if steps is None or self.rss_bytes is None else steps - self.rss_bytes,
            "gpu_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
            "gpu_reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        }
