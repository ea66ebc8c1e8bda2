"""Shoestring: the cheapest model that meets your bar, and what it costs altogether.

    import shoestring as ss
    verdict = ss.Run.from_file("run.yaml").execute()

Names load on first use, so `import shoestring` is quick and needs no heavy package.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it (and its name there, where that differs).
_EXPORTS: dict[str, str] = {
    "Run": "recipe",
    "RunConfig": "config",
    "load_run_file": "config",
    "Example": "records",
    "Message": "records",
    "Verdict": "records",
    "ShoestringError": "errors",
    "load": "data.load",
    "curate": "data.folder",
    "detect": "data.detect",
    "score_arm": "evaluate.score",
    "paired_difference": "evaluate.score",
    "plan_ladder": "plan.ladder_plan",
    "predict_memory": "plan.predict",
    "predict_throughput": "plan.speed",
    "price_for": "market.prices",
    "train_rung": "train.trainer",
    "merge_adapter": "serve.merge",
    "render_report": "report.html",
}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604 (they are strings)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'shoestring' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
