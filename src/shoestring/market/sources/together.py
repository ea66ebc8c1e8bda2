"""Together: the list prices of its GPU clusters, by the daily feed.

Its own API (GET /v1/hardware) wants a key and prices dedicated endpoints, which are for serving.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..fetch import Web
from ..offers import Quote
from .listed import CREDIT, URL, quotes_of
from .source import Source


def quotes(web: Web, url: str) -> Iterator[Quote]:
    """Its clusters are HGX machines (docs.together.ai, GPU clusters), which are SXM."""
    return quotes_of(web, url, {"together": ("Together", "HGX")})


SOURCE = Source("together", URL, quotes, CREDIT, basis="third-party copy")
