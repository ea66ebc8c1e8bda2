"""The contract over llama-server, where it is built (scripts/build_llamacpp.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_contract import CHECKS, Check
from served import Running, running
from served_runs import CPU, make_run

from shoestring.serve.engine import Engine
from shoestring.serve.opening import open_registry
from shoestring.serve.registry import read_run

MODEL = "shoestring-1m"
NAMES = ("tickets", "orders")
IS_BUILT = bool(os.environ.get("SHOESTRING_LLAMACPP")) or (Path(sys.prefix) / "llamacpp").is_dir()
pytestmark = pytest.mark.skipif(not IS_BUILT, reason="llama.cpp is not built (scripts/build_llamacpp.py)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    runs = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(NAMES):
        make_run(runs, name, seed=seed)

    async def open_engine() -> Engine:
        own = [read_run(runs / name) for name in NAMES]
        return (await open_registry(own, runs_dir=runs, device=CPU, engine="llamacpp")).engine

    with running(runs, MODEL, open_engine, NAMES) as own:
        yield own


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(server: Running, check: Check) -> None:
    check(server.base_url, server.key, [MODEL, *NAMES])
