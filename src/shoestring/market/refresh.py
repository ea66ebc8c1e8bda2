"""Fetching prices anew: each source by itself, checked before it replaces what was known; a failing one keeps it."""

from __future__ import annotations

import difflib
import importlib.util
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from ..errors import BadInput, MissingDependency, SourceError
from .fetch import Web, key_of
from .offers import Checked, Offer, Refusal, check
from .sources import SOURCES
from .sources.source import Source
from .table import cache_path, load, read_cached, recent, write_cached

TIMEOUT_S = 20.0
MOST_IMPLAUSIBLE_FRAC = 0.5  # above, the source's unit or fields have changed, and none of it is believed
LARGEST_CLOCK_DIFFERENCE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of one source. offers: its table now, the kept one where it failed (reason says why)."""

    source: str
    offers: tuple[Offer, ...]
    reason: str = ""
    is_skipped: bool = False  # not asked: a key or a package is missing, and nobody named the source
    refused: tuple[Refusal, ...] = ()
    outside: Counter[str] = field(default_factory=Counter)
    note: str = ""

    @property
    def is_fresh(self) -> bool:
        """Whether the table was fetched now."""
        return not self.reason


def chosen_sources(names: Iterable[str]) -> list[Source]:
    """The named sources, or all. Raises: BadInput for an unknown name, listing near ones."""
    found = []
    for name in names:
        if name not in SOURCES:
            near = difflib.get_close_matches(name, SOURCES, n=3, cutoff=0.4) or list(SOURCES)
            raise BadInput(f"no price source {name!r}; there are: {', '.join(near)}")
        found.append(SOURCES[name])
    return list(dict.fromkeys(found)) or list(SOURCES.values())


def refresh(
    names: Iterable[str] = (),
    *,
    urls: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    now: datetime | None = None,
    on_done: Callable[[Refreshed], None] = lambda done: None,
) -> list[Refreshed]:
    """Fetch sources side by side and keep each good table in the cache; results in the order asked.

    names: empty for all; then a source without its key or package is skipped. urls: other addresses, by source;
    SHOESTRING_VAST_URL and its like do the same. Raises: BadInput for an unknown name; RunFolderError where the cache
    cannot be written.
    """
    names = list(names)
    sources = chosen_sources(names)
    now = now or datetime.now(UTC)
    answers: queue.SimpleQueue[Refreshed | BaseException] = queue.SimpleQueue()

    def work(source: Source) -> None:
        try:
            answers.put(_refresh_one(source, address(source, urls or {}), timeout_s, now, is_named=bool(names)))
        except BaseException as error:  # handed to the caller's thread, which raises it
            answers.put(error)

    done: dict[str, Refreshed] = {}
    for source in sources:  # daemons, so that Ctrl-C does not wait for a long download
        threading.Thread(target=work, args=(source,), name=f"prices-{source.name}", daemon=True).start()
    while len(done) < len(sources):
        answer = answers.get()
        if isinstance(answer, BaseException):
            raise answer
        done[answer.source] = answer
        on_done(answer)
    return [done[source.name] for source in sources]


def address(source: Source, urls: Mapping[str, str]) -> str:
    """Where a source is asked."""
    return urls.get(source.name) or os.environ.get(f"SHOESTRING_{source.name.upper()}_URL", "").strip() or source.url


def _refresh_one(source: Source, url: str, timeout_s: float, now: datetime, *, is_named: bool) -> Refreshed:
    lacks = _lacks(source)
    if lacks and not is_named:
        return Refreshed(source.name, _previous(source, now.date()), lacks, is_skipped=True)
    web = Web(timeout_s=timeout_s, key_env=source.key_env)
    try:
        checked, note = _fetch(source, web, url, now)
    except (SourceError, MissingDependency) as error:
        previous = _previous(source, now.date())
        return Refreshed(source.name, previous, f"{error}; {_kept_in_words(previous)}")
    return Refreshed(source.name, checked.offers, "", False, checked.refused, checked.outside, note)


def _fetch(source: Source, web: Web, url: str, now: datetime) -> tuple[Checked, str]:
    others = recent((offer for offer in load(now.date()).offers if offer.source != source.credit), now.date())
    quotes = list(source.quotes(web, url))
    moment, note = _moment(web, now)
    checked = check(
        quotes,
        source=source.credit,
        observed_at=moment.date(),
        basis=source.basis,
        market=others,
        previous=_previous(source, now.date()),
    )
    implausible = [fault for fault in checked.refused if fault.is_implausible]
    if len(implausible) > MOST_IMPLAUSIBLE_FRAC * (len(checked.offers) + len(implausible)):
        raise SourceError(
            f"{len(implausible)} of its {len(quotes)} prices cannot be, so a unit or a field has changed; "
            f"the first: {implausible[0]}"
        )
    if not checked.offers:
        why = f", the first refused is {checked.refused[0]}" if checked.refused else ""
        raise SourceError(f"none of its {len(quotes)} prices is of use{why}")
    write_cached(source.name, checked.offers, moment)
    return checked, note


def _moment(web: Web, now: datetime) -> tuple[datetime, str]:
    """When the prices were seen; the server's clock where ours is far from it."""
    if web.server_time is None or abs(web.server_time - now) <= LARGEST_CLOCK_DIFFERENCE:
        return now, ""
    ours, theirs = (moment.isoformat(sep=" ", timespec="minutes") for moment in (now, web.server_time))
    return web.server_time, f"this machine's clock says {ours}, the server's {theirs}: prices carry the server's date"


def _lacks(source: Source) -> str:
    if source.key_env:
        try:
            key_of(source.key_env)
        except SourceError as error:
            return str(error)
    if source.extra and importlib.util.find_spec(source.name) is None:
        return f"the package is not installed; pip install 'shoestring[{source.extra}]'"
    return ""


def _previous(source: Source, today: date) -> tuple[Offer, ...]:
    try:
        return tuple(read_cached(cache_path(source.name), today))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _kept_in_words(previous: tuple[Offer, ...]) -> str:
    if not previous:
        return "there is no earlier table of it, the snapshot holds"
    return f"its table of {max(o.observed_at for o in previous).isoformat()} is kept ({len(previous)} offers)"
