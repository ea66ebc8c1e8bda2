"""`shoestring prices`: what machines cost, from whom and since when; `prices refresh` asks the sellers anew."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

from ..errors import BadInput
from ..market.offers import MACHINES_AT_HAND, Offer, Refusal
from ..market.refresh import Refreshed, refresh
from ..market.table import age_in_words, load, snapshot
from ..plan.devices import gpu_spec
from ..units import gib
from .output import emit, say, warn
from .tables import table

REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which offers to list."""

    gpu: str | None = None
    seller: str | None = None
    only_spot: bool = False
    max_usd: float | None = None


def command(words: list[str], wanted: Wanted, is_json: bool) -> int:
    """List offers, or with words that start with 'refresh' fetch them."""
    if words and words[0] != REFRESH:
        raise BadInput(f"'shoestring prices {words[0]}' is not known; there is: shoestring prices refresh [SOURCE...]")
    if not words:
        return _list(wanted, is_json)
    if wanted != Wanted():
        raise BadInput(
            "--gpu, --seller, --spot and --max-usd choose what is listed; leave them out of 'prices refresh'"
        )
    return _refresh(words[1:], is_json)


# ---- listing --------------------------------------------------------------------------------


def _list(wanted: Wanted, is_json: bool) -> int:
    today = datetime.now(UTC).date()
    known = load(today)
    rentable = [offer for offer in known.offers if offer.gpu not in MACHINES_AT_HAND]
    found = choose(rentable, wanted)
    if is_json:
        notes = [*known.notes, snapshot_in_words(today)]
        emit({"today": today.isoformat(), "notes": notes, "offers": [_as_json(offer, today) for offer in found]})
        return 0
    if found:
        heads = ("GPU", "memory", "seller", "kind", "USD/GPU-hour", "GPUs", "region", "seen", "source")
        say(table(heads, [_row(offer, today) for offer in cheapest(found)], right=(1, 4, 5), flexible=8))
    else:
        say(f"No offer of {_in_words(wanted)}.")
    for note in (*known.notes, snapshot_in_words(today)):
        warn(note)
    return 0


def choose(offers: Sequence[Offer], wanted: Wanted) -> list[Offer]:
    """The offers that are wanted. Raises: BadInput for a GPU or seller without any, or a price that is none."""
    if wanted.max_usd is not None and not (math.isfinite(wanted.max_usd) and wanted.max_usd > 0):
        raise BadInput(f"--max-usd {wanted.max_usd:g}: give a price per GPU-hour above 0")
    gpus = _matching(wanted.gpu, {o.gpu for o in offers}, "GPU", _gpu_matches)
    sellers = _matching(wanted.seller, {o.seller for o in offers}, "seller", lambda asked, name: asked in name.lower())
    return [
        offer
        for offer in offers
        if offer.gpu in gpus
        and offer.seller in sellers
        and (offer.is_spot or not wanted.only_spot)
        and (wanted.max_usd is None or offer.usd_per_gpu_hour <= wanted.max_usd)
    ]


def _matching(asked: str | None, names: set[str], what: str, matches: Any) -> set[str]:
    if asked is None:
        return names
    found = {name for name in names if matches(asked.strip().lower(), name)}
    if not found:
        near = difflib.get_close_matches(asked.lower(), names, n=4, cutoff=0.3) or sorted(names)
        raise BadInput(f"no offer of the {what} {asked!r}; there are: {', '.join(near)}")
    return found


def _gpu_matches(asked: str, name: str) -> bool:
    """By the table's or the driver's name, or the beginning of one: H100 finds H100-SXM and H100-PCIE."""
    spec = gpu_spec(asked)
    if spec is not None:
        return spec.device == name
    return bool(asked) and name.lower().replace("-", "").startswith(asked.replace(" ", "").replace("-", ""))


def cheapest(offers: Iterable[Offer]) -> list[Offer]:
    """The cheapest offer of each GPU, seller and kind, in the order given."""
    best: dict[tuple[str, str, bool], Offer] = {}
    for offer in offers:
        key = (offer.gpu, offer.seller, offer.is_spot)
        if key not in best or offer.usd_per_gpu_hour < best[key].usd_per_gpu_hour:
            best[key] = offer
    return sorted(best.values(), key=lambda o: (o.gpu, o.is_spot, o.usd_per_gpu_hour))


def _row(offer: Offer, today: date) -> tuple[str, ...]:
    return (
        offer.gpu,
        gib(offer.memory_bytes),
        offer.seller,
        "spot" if offer.is_spot else "list",
        f"{offer.usd_per_gpu_hour:.3f}",
        str(offer.num_gpus),
        offer.region,
        "undated" if offer.basis == "undated catalog" else age_in_words(offer.observed_at, today),
        offer.source if offer.basis != "recalled" else f"recalled: {offer.source}",
    )


def _as_json(offer: Offer, today: date) -> dict[str, Any]:
    age_days = (today - offer.observed_at).days
    is_known = age_days >= 0 and offer.basis != "undated catalog"
    return asdict(offer) | {
        "observed_at": offer.observed_at.isoformat(),
        "age_days": age_days if is_known else None,
    }


def _in_words(wanted: Wanted) -> str:
    kind = "spot machines" if wanted.only_spot else "machines"
    parts = [f"with {wanted.gpu}" if wanted.gpu else "", f"from {wanted.seller}" if wanted.seller else ""]
    parts.append(f"at {wanted.max_usd:g} USD per GPU-hour or less" if wanted.max_usd is not None else "")
    return " ".join([kind, *(part for part in parts if part)])


def snapshot_in_words(today: date) -> str:
    """How old the package's own prices are."""
    dates = [offer.observed_at for offer in snapshot() if offer.basis == "third-party copy"]
    age = age_in_words(max(dates), today)
    return (
        f"The package's own prices are of {min(dates).isoformat()} to {max(dates).isoformat()} (the newest {age}); "
        "newer ones: shoestring prices refresh"
    )


# ---- refreshing -----------------------------------------------------------------------------


def _refresh(names: list[str], is_json: bool) -> int:
    results = refresh(names, on_done=lambda done: warn(f"{done.source}: {outcome(done)}"))
    if is_json:
        emit({"sources": [_result_as_json(result) for result in results]})
    else:
        heads = ("source", "offers", "refused", "other GPUs", "")
        say(table(heads, [_result_row(result) for result in results], right=(1, 2, 3)))
        for fault, count in grouped([fault for result in results for fault in result.refused]):
            say(f"refused {fault}" + (f" (and {count - 1} more like it)" if count > 1 else ""))
    if not any(result.is_fresh for result in results):
        warn("No source could be fetched; the prices are those there were before.")
        return 1
    return 0


def _result_row(result: Refreshed) -> tuple[str, ...]:
    state = "fetched" if result.is_fresh else "not asked" if result.is_skipped else "failed"
    return (result.source, str(len(result.offers)), str(len(result.refused)), str(result.outside.total()), state)


def outcome(result: Refreshed) -> str:
    """What became of a source, in a line."""
    if result.is_skipped:
        return f"not asked: {result.reason}"
    if not result.is_fresh:
        return f"failed: {result.reason}"
    sellers = len({offer.seller for offer in result.offers})
    words = f"{len(result.offers)} offers of {sellers} seller{'s' if sellers != 1 else ''}"
    words += f", {len(result.refused)} refused" if result.refused else ""
    return words + (f"; {result.note}" if result.note else "")


def grouped(refused: Sequence[Refusal]) -> list[tuple[Refusal, int]]:
    """The first refusal of each seller and reason, and how many there are like it."""
    groups: dict[str, list[Refusal]] = {}
    for fault in refused:
        groups.setdefault(f"{fault.what.split()[0]} {fault.reason[:30]}", []).append(fault)
    return [(faults[0], len(faults)) for faults in groups.values()]


def _result_as_json(result: Refreshed) -> dict[str, Any]:
    return {
        "source": result.source,
        "is_fresh": result.is_fresh,
        "is_skipped": result.is_skipped,
        "reason": result.reason or result.note,
        "num_offers": len(result.offers),
        "num_refused": len(result.refused),
        "refused": [asdict(fault) | {"count": count} for fault, count in grouped(result.refused)],
        "outside_the_gpu_table": dict(result.outside),
    }
