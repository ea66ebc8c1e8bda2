"""What a price source is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..fetch import Web
from ..offers import Quote

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Source:
    """A place that prices are read from.

    quotes(web, url) yields what the source says, in its own terms. Raises: SourceError.
    """

    name: str
    url: str  # empty: not read over HTTP by us
    quotes: Callable[[Web, str], Iterator[Quote]]
    credit: str  # how an offer names it
    key_env: str = ""
    basis: str = "quoted"
    extra: str = ""  # of the package, where it needs one
