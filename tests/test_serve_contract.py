"""The contract over the embedded engine, with two adapters on one base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shoestring.serve.engines.embedded import open_embedded
from tests.serve_contract import CHECKS, Check
from tests.served import Running, running
from tests.served_runs import CPU, make_run

MODEL = "shoestring-1m"
ADAPTERS = ("invoices", "tickets")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    runs_dir = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(ADAPTERS):
        make_run(runs_dir, name, MODEL, seed=seed)

    async def open_engine() -> Any:
        return await open_embedded(MODEL, device=CPU)

    with running(runs_dir, MODEL, open_engine, ADAPTERS) as found:
        yield found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, server: Running) -> None:
    check(server.base_url, server.key, (MODEL, *ADAPTERS))
