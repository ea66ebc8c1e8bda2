"""CoreWeave: its list prices, on machines of eight GPUs; it has no public price API, so they come by the daily feed."""

from __future__ import annotations

from collections.abc import Iterator

from ..fetch import Web
from ..offers import Quote
from .listed import CREDIT, URL, quotes_of
from .source import Source


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Its H100 and A100 are HGX machines (coreweave.com/pricing), which are SXM."""
    return quotes_of(web, url, {"coreweave": ("CoreWeave", "HGX")})


SOURCE = Source("coreweave", URL, quotes, CREDIT, basis="third-party copy")
