"""`shoestring prices` from outside: what it lists offline, and what refreshing from a loopback server changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoestring.cli.main import run
from shoestring.market.sources import SOURCES
from shoestring.market.table import cache_path, snapshot
from tests.price_pages import PriceServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PriceServer]:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    pages = PriceServer()
    for name, url in pages.urls.items():
        monkeypatch.setenv(f"SHOESTRING_{name.upper()}_URL", url)
    yield pages
    pages.close()


def told_json(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run(["prices", *arguments, "--json"]) == code
    return json.loads(capfd.readouterr().out)


def test_the_snapshot_offline(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "--gpu", "H100", "--max-usd", "2"]) == 0
    captured = capfd.readouterr()
    rows = captured.out.splitlines()
    assert len(rows) == 3 and "H100-PCIE" in rows[1] and "RunPod community" in rows[1] and "data-receipts" in rows[1]
    assert "TensorDock" in rows[2] and "spot" in rows[2]
    assert "The package's own prices are of 2026-03-01 to 2026-11-09" in captured.err
    assert "shoestring prices refresh" in captured.err


def test_every_number_has_its_source_and_age(capfd: pytest.CaptureFixture[str]) -> None:
    told = told_json(capfd, "--seller", "runpod")
    assert {offer["seller"] for offer in told["offers"]} == {"RunPod", "RunPod community", "RunPod secure"}
    for offer in told["offers"]:
        assert offer["source"] and offer["observed_at"] and offer["basis"] and offer["memory_bytes"] > 0
        assert offer["age_days"] is None or offer["age_days"] >= 0


def test_spot_only(capfd: pytest.CaptureFixture[str]) -> None:
    told = told_json(capfd, "--spot")
    assert len(told["offers"]) == sum(offer.is_spot for offer in snapshot())
    assert all(offer["is_spot"] for offer in told["offers"])


def test_nothing_that_cheap(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "--gpu", "B300", "--max-usd", "1"]) == 0
    assert "No offer of machines with B300 at 1 USD per GPU-hour or less." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "H1000"], "no offer of the GPU 'H1000'; there are: "),
        (["--gpu", ""], "no offer of the GPU ''"),
        (["--seller", "Acme"], "no offer of the seller 'Acme'; there are: "),
        (["--max-usd", "-1"], "--max-usd -1: give a price per GPU-hour above 0"),
        (["--max-usd", "nan"], "give a price per GPU-hour above 0"),
        (["fetch"], "'shoestring prices fetch' is not known"),
        (["refresh", "vastai"], "no price source 'vastai'; there are: vast"),
        (["refresh", "--gpu", "L4"], "leave them out of 'prices refresh'"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", *arguments]) == 2
    assert words in capfd.readouterr().err


def test_refresh_then_list(server: PriceServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.spoil["azure"] = lambda page: (200, b"<html>blocked</html>")
    assert run(["prices", "refresh", "vast", "azure", "aws"]) == 0
    captured = capfd.readouterr()
    assert "vast: 3 offers of 1 seller, 1 refused" in captured.err
    assert "azure: failed" in captured.err and "HTML page" in captured.err and "the snapshot holds" in captured.err
    assert "exactly a tenth of the list price" in captured.out
    told = told_json(capfd, "--seller", "vast")
    assert {offer["source"] for offer in told["offers"] if offer["gpu"] == "RTX4090"} == {"Vast.ai's marketplace"}
    assert [offer["age_days"] for offer in told["offers"] if offer["gpu"] == "RTX4090"] == [0, 0]
    assert {offer["seller"] for offer in told_json(capfd)["offers"]} >= {"Azure", "Lambda"}  # the rest still answers


def test_refresh_as_json(server: PriceServer, capfd: pytest.CaptureFixture[str]) -> None:
    told = told_json(capfd, "refresh", "runpod")
    (source,) = told["sources"]
    assert source["is_fresh"] and source["num_offers"] == 5 and source["outside_the_gpu_table"]
    assert source["refused"][0]["value"] == "0 USD per GPU-hour" and source["refused"][0]["limit"] == "above 0"


def test_refresh_without_a_network(server: PriceServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.close()
    told = told_json(capfd, "refresh", code=1)
    assert len(told["sources"]) == len(SOURCES) and not any(source["is_fresh"] for source in told["sources"])
    assert run(["prices", "--gpu", "L4"]) == 0


def test_a_cache_that_cannot_be_written(
    server: PriceServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "file"))
    assert run(["prices", "refresh", "lium"]) == 1
    assert "cannot write" in capfd.readouterr().err
    assert not cache_path("lium").exists()
    assert run(["prices", "--gpu", "L4"]) == 0


def test_the_runs_price_follows_what_was_fetched(server: PriceServer, capfd: pytest.CaptureFixture[str]) -> None:
    from shoestring.config import MarketConfig
    from shoestring.market.prices import price_for
    from shoestring.records import Device

    card = Device("cuda", "NVIDIA L4", 24 * 10**9, 8, "bfloat16", "")
    assert price_for(card, MarketConfig()).usd_per_hour == 0.44
    assert run(["prices", "refresh", "runpod"]) == 0
    price = price_for(card, MarketConfig())
    assert price.usd_per_hour == 0.43 and price.source.startswith("RunPod secure, price quoted by RunPod's API, ")
    assert price.source.endswith("(today)")
