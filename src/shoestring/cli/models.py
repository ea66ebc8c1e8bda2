"""`shoestring models`: the table of models, by licence, size and what a GPU holds."""

from __future__ import annotations

from typing import Any

from ..plan.catalogue import FIT_TOKENS, Entry, Fit, fits, select
from ..records import to_json
from ..units import count, gib
from .output import emit, say
from .tables import table


def command(licence: str | None, max_params: str | None, gpu: str | None, is_json: bool) -> int:
    """List what select() finds, with --fits what trains there."""
    chosen = select(licence, max_params)
    fit = fits(chosen, gpu) if gpu else {}
    if is_json:
        emit({"fits_gpu": gpu, "models": [_told(entry, fit.get(entry.model)) for entry in chosen]})
        return 0
    heads = ["model", "params", "context", "licence", "gated"]
    rows = [_row(entry) for entry in chosen]
    right = [1, 2]
    if gpu:
        heads += [f"trains on {gpu}", "needs"]
        rows = [(*row, *_fit_cells(fit[entry.model])) for row, entry in zip(rows, chosen, strict=True)]
        right.append(6)
    if not rows:
        say(f"No model of the table has at most {max_params} parameters.")
        return 0
    say(table(heads, rows, right=right))
    say("? recalled or not found: read the model's card first. A licence that is not permissive limits use.")
    if gpu:
        say(
            f"trains: what Shoestring trains, one row of {FIT_TOKENS} tokens at a time, layers recomputed where needed."
        )
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    licence = entry.licence if entry.is_permissive else f"{entry.licence}, not permissive"
    if "not permissive" in entry.licence or entry.licence.startswith("UNVERIFIED"):
        licence = entry.licence
    gated = {"unknown": "?"}.get(entry.gated, f"{entry.gated}?")
    doubt = "?" if entry.licence_basis and "search" not in entry.licence_basis else ""
    return (entry.model, count(entry.num_params), f"{entry.context_tokens:,}", licence + doubt, gated)


def _fit_cells(fit: Fit) -> tuple[str, str]:
    if fit.refused:
        return fit.refused, ""
    method = fit.method
    used = fit.qlora if method == "no" or method.startswith("qlora") else fit.lora
    return method, gib(used.device_expected_bytes) if used else ""


def _told(entry: Entry, fit: Fit | None) -> dict[str, Any]:
    told = to_json(entry)
    if fit is not None:
        told["fits"] = {
            "method": fit.method,
            "refused": fit.refused,
            **{name: to_json(found) for name, found in (("lora", fit.lora), ("qlora", fit.qlora)) if found is not None},
        }
    return told
