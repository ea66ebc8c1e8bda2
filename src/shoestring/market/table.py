"""Every offer there is: the dated snapshot in the package, and over it what `shoestring prices refresh` has fetched.

A fetched table replaces the snapshot's rows of the same seller, GPU and kind (spot or not) when it is newer. Each
source's table is one file of the user's cache folder, written whole or not at all.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from ..files import read_json, write_json
from ..plan.devices import gpu_table
from .offers import LIST_BASES, MACHINES_AT_HAND, Offer, Refusal, audit

PRICES_CSV = Path(__file__).with_name("prices.csv")
CACHE_ENV = "SHOESTRING_CACHE"
DATED_BASES = ("quoted", "third-party copy")  # the others fill gaps
REFERENCE_DAYS = 365  # older prices say nothing of whether a new one can be
STALE_DAYS = 30  # an H100 rose from 3.29 to 3.99 between August and October 2026


@dataclass(frozen=True, slots=True)
class Table:
    """All offers that hold now, and what a reader should know of them."""

    offers: tuple[Offer, ...]
    notes: tuple[str, ...] = ()


@functools.cache
def snapshot() -> tuple[Offer, ...]:
    """Rows of prices.csv, all of them checked by the tests."""
    with PRICES_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(_from_csv(row) for row in csv.DictReader(file))


def _from_csv(row: dict[str, str]) -> Offer:
    spec = gpu_table().get(row["gpu"])
    return Offer(
        seller=row["seller"],
        region=row["region"],
        gpu=row["gpu"],
        num_gpus=int(row["num_gpus"]),
        memory_bytes=spec.memory_bytes if spec else 0,
        usd_per_gpu_hour=float(row["usd_per_gpu_hour"]),
        is_spot=row["spot"] == "yes",
        interruption=row["interruption"],
        source=row["source"],
        observed_at=date.fromisoformat(row["observed_at"]),
        basis=row["basis"],
    )


def load(today: date | None = None) -> Table:
    """The snapshot and the fetched tables as one; a damaged file is named in the notes and left out."""
    today = today or datetime.now(UTC).date()
    fetched: list[Offer] = []
    notes: list[str] = []
    for path in sorted(cache_folder().glob("*.json")):
        try:
            offers, refused = _checked(path, today)
            fetched += offers
            if refused:
                notes.append(
                    f"{len(refused)} prices of {path} are refused, the first: {refused[0]}; "
                    f"write it again with: shoestring prices refresh {path.stem}"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(
                f"{path} cannot be read ({type(error).__name__}) and is left out; "
                f"write it again with: shoestring prices refresh {path.stem}"
            )
    offers = merge(snapshot(), fetched, today)
    return Table(tuple(offers), (*notes, *age_notes(offers, today)))


def merge(rows: Iterable[Offer], fetched: Sequence[Offer], today: date) -> list[Offer]:
    """One table a key of seller, GPU and kind: the seller's own words while fresh, else the newest with a date.

    Undated catalogs and recalled prices only fill gaps: a catalog said 2.29 of an H100 that cost 4.49.
    """
    tables: dict[tuple[str, str, bool], dict[str, list[Offer]]] = {}
    for origin, offers in (("snapshot", rows), ("", fetched)):
        for offer in offers:
            key = (offer.seller, offer.gpu, offer.is_spot)
            tables.setdefault(key, {}).setdefault(origin or offer.source, []).append(offer)

    def rank(offers: list[Offer]) -> tuple[bool, bool, date]:
        basis, newest = offers[0].basis, max(offer.observed_at for offer in offers)
        is_fresh = basis == "quoted" and abs((today - newest).days) <= STALE_DAYS
        return is_fresh, basis in DATED_BASES, newest

    chosen = {key: max(by_origin.values(), key=rank) for key, by_origin in tables.items()}
    return sorted(
        (offer for key, offers in chosen.items() if not _is_told_apart(key, chosen) for offer in offers),
        key=lambda o: (o.gpu, o.is_spot, o.usd_per_gpu_hour, o.seller, o.region, o.num_gpus),
    )


def _is_told_apart(key: tuple[str, str, bool], chosen: Mapping[tuple[str, str, bool], Sequence[Offer]]) -> bool:
    """Whether later rows split this seller's, as 'RunPod secure' and 'RunPod community' do those of 'RunPod'."""
    seller, gpu, is_spot = key
    parts = [
        offers[0].observed_at
        for (other, *rest), offers in chosen.items()
        if rest == [gpu, is_spot] and other.startswith(f"{seller} ")
    ]
    return bool(parts) and max(parts) > max(offer.observed_at for offer in chosen[key])


def recent(offers: Iterable[Offer], today: date) -> list[Offer]:
    """The offers that new prices may be compared with."""
    return [offer for offer in offers if (today - offer.observed_at).days <= REFERENCE_DAYS]


def age_notes(offers: Iterable[Offer], today: date) -> list[str]:
    """What to say of the dates: stale prices, and a clock that stands before them."""
    dates = [offer.observed_at for offer in offers if offer.basis != "assumption"]
    if not dates:
        return []
    oldest, newest = min(dates), max(dates)
    if newest > today:
        return [
            f"this machine's clock says {today.isoformat()}, but prices are dated up to {newest.isoformat()}: "
            "set the clock; ages are not known until then"
        ]
    stale = sum((today - day).days > STALE_DAYS for day in dates)
    if not stale:
        return []
    return [
        f"{stale} of {len(dates)} prices are older than {STALE_DAYS} days (the oldest of {oldest.isoformat()}); "
        "prices move within weeks, check them or run: shoestring prices refresh"
    ]


def age_in_words(observed_at: date, today: date) -> str:
    """'today', '15 days old', or that the clock stands before the date."""
    age = (today - observed_at).days
    if age < 0:
        return f"dated after this machine's clock, {today.isoformat()}"
    return "today" if age == 0 else f"{age} day{'s' if age != 1 else ''} old"


# ---- the cache ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where fetched tables are kept: SHOESTRING_CACHE, else the user's cache folder."""
    chosen = os.environ.get(CACHE_ENV, "").strip()
    if chosen:
        return Path(chosen).expanduser() / "prices"
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser() / "shoestring" / "prices"


def cache_path(source: str) -> Path:
    """The file of one source's table."""
    return cache_folder() / f"{source}.json"


def write_cached(source: str, offers: Sequence[Offer], fetched_at: datetime) -> Path:
    """Keep a source's table. Raises: RunFolderError where the cache folder cannot be written."""
    path = cache_path(source)
    rows = [asdict(offer) | {"observed_at": offer.observed_at.isoformat()} for offer in offers]
    table = {"source": source, "fetched_at": fetched_at.isoformat(timespec="seconds"), "offers": rows}
    try:
        write_json(path, table)
    except RunFolderError as error:
        raise RunFolderError(
            str(error).replace("another place with --runs-dir", f"another folder with {CACHE_ENV}")
        ) from error
    return path


def read_cached(path: Path, today: date) -> list[Offer]:
    """A source's table, checked again, for the file may have been edited.

    Raises: OSError, ValueError, KeyError, TypeError.
    """
    return _checked(path, today)[0]


def _checked(path: Path, today: date) -> tuple[list[Offer], list[Refusal]]:
    offers = [_from_json(row) for row in read_json(path)["offers"]]
    return audit(offers, market=recent(snapshot(), today))


def _from_json(row: dict[str, Any]) -> Offer:
    offer = Offer(**(row | {"observed_at": date.fromisoformat(row["observed_at"])}))
    known = offer.gpu in gpu_table() or offer.gpu in MACHINES_AT_HAND
    if not known or offer.basis not in LIST_BASES or not isinstance(offer.usd_per_gpu_hour, (int, float)):
        raise ValueError(f"{offer.words} is no offer")
    return offer
