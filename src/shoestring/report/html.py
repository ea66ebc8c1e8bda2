"""The report of a run: verdict first, then scores, curves, data, predictions, failures, settings.

Reads the files of the run folder only, and renders whatever is there: a run killed half-way gets a
report that says what is not done yet.
"""

from __future__ import annotations

from pathlib import Path

from . import parts
from .curves import curves, growth
from .data import data
from .folder import RunFiles, read_run
from .judge import judges
from .ladder import ladder, price_chart
from .launched import launched
from .scores import scores
from .style import STYLE
from .text import Markup, esc, join
from .verdict import verdict

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_report(run_folder: Path) -> str:
    """The whole page for runs/NAME, as one HTML text."""
    run = read_run(Path(run_folder))
    name = run.config.name if run.config else run.folder.name
    body = join(
        _header(run, name),
        verdict(run),
        problems(run),
        scores(run),
        judges(run),
        curves(run),
        growth(run),
        price_chart(run),
        ladder(run),
        parts.searches(run),
        data(run),
        run.costs or "",
        parts.predicted(run),
        launched(run.folder),
        parts.forgotten(run),
        parts.failures(run),
        parts.settings(run),
        parts.environment(run),
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{esc(name)}: Shoestring report</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _header(run: RunFiles, name: str) -> Markup:
    task = run.config.task if run.config else None
    what = f"{task.kind}, scored by {task.metric.replace('_', ' ')}" if task else "run file not readable"
    when = str(run.meta.get("updated_at", ""))[:10]
    return join(
        f'<p class="over">Shoestring report{esc(f" · {when}" if when else "")} · {esc(what)}</p><h1>{esc(name)}</h1>'
    )


def problems(run: RunFiles) -> Markup:
    """What in the folder could not be read."""
    return join(*(f'<p class="note">{esc(problem)}</p>' for problem in run.problems))
