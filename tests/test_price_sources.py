"""Each price source against a real HTTP server on the loopback that serves its recorded page, whole and spoiled."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from shoestring.errors import BadInput
from shoestring.market.offers import Offer
from shoestring.market.refresh import Refreshed, refresh
from shoestring.market.sources import SOURCES
from shoestring.market.table import cache_path, load, snapshot
from tests.price_pages import PriceServer

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HTTP_SOURCES = [name for name, source in SOURCES.items() if source.url]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PriceServer]:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setenv("LAMBDA_API_KEY", "secret")
    pages = PriceServer()
    pages.date = "Sat, 28 Nov 2026 12:00:01 GMT"
    yield pages
    pages.close()


def fetched(server: PriceServer, name: str, **more: object) -> Refreshed:
    (result,) = refresh([name], urls=server.urls, now=NOW, **more)  # type: ignore[arg-type]
    return result


def brief(offers: tuple[Offer, ...]) -> list[tuple[object, ...]]:
    return [(o.seller, o.region, o.gpu, o.num_gpus, round(o.usd_per_gpu_hour, 4), o.is_spot) for o in offers]


EXPECTED = {
    "vast": [
        ("Vast.ai", "Quebec, CA", "RTX4090", 2, 0.36, False),
        ("Vast.ai", "", "H100-SXM", 8, 2.42, False),
        ("Vast.ai", "Quebec, CA", "RTX4090", 2, 0.15, True),
    ],
    "runpod": [
        ("RunPod community", "", "H100-SXM", 1, 2.69, False),
        ("RunPod secure", "", "H100-SXM", 1, 3.99, False),
        ("RunPod secure", "", "L4", 1, 0.43, False),
        ("RunPod community", "", "H100-SXM", 1, 1.5, True),
        ("RunPod secure", "", "H100-SXM", 1, 2.0, True),
    ],
    "azure": [
        ("Azure", "eastus", "A100-PCIE", 1, 3.673, False),
        ("Azure", "eastus", "A100-PCIE", 2, 3.673, False),
        ("Azure", "eastus", "H100-SXM", 8, 12.29, False),
        ("Azure", "eastus", "A100-PCIE", 2, 0.6788, True),
    ],
    "aws": [
        ("AWS", "us-east-1", "H100-SXM", 8, 6.88, False),
        ("AWS", "us-east-1", "L4", 1, 0.805, False),
        ("AWS", "us-east-1", "H100-SXM", 8, 2.9584, True),
    ],
    "lambda": [("Lambda", "us-west-1", "H100-SXM", 8, 3.99, False), ("Lambda", "", "A10", 1, 1.29, False)],
    "coreweave": [("CoreWeave", "", "H100-SXM", 8, 6.155, False), ("CoreWeave", "", "L40S", 8, 2.25, False)],
    "together": [("Together", "", "H100-SXM", 1, 3.99, False)],
    "listed": [("Nebius", "", "H100-SXM", 1, 4.5, False), ("Hyperstack", "", "H200", 1, 3.99, False)],
    "lium": [
        ("Lium", "JP-13", "RTX5090", 8, 0.5, False),
        ("Lium", "US", "H200", 1, 3.99, False),
        ("Lium", "US-VA", "RTX4090", 4, 0.19, True),
    ],
    "skypilot": [
        ("Hyperstack", "CANADA-1", "H100-PCIE", 1, 1.9, False),
        ("Nebius", "eu-north1", "H100-SXM", 8, 2.95, False),
        ("Verda", "FIN-01", "A100-SXM", 1, 1.29, False),
        ("Nebius", "eu-north1", "H100-SXM", 8, 1.25, True),
        ("Verda", "FIN-03", "B200", 2, 1.7115, True),
    ],
}
REFUSED = {  # the traps of each recorded page
    "vast": ["spot price of zero"],
    "runpod": ["spot price of zero"],
    "azure": ["whole"],  # a sixth of an A10
    "aws": ["exactly a tenth"],  # the advisor's ninety percent
    "listed": ["the host"],  # Google's page prices the GPU alone
    "skypilot": ["leaves out the GPU", "leaves out the host", "spot price of zero", "equal to the list price"],
}


@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_the_recorded_page(server: PriceServer, name: str) -> None:
    result = fetched(server, name)
    assert not result.reason and not result.note
    assert brief(result.offers) == EXPECTED[name]
    words = [str(fault) for fault in result.refused]
    for trap in REFUSED.get(name, []):
        assert any(trap in word for word in words), (trap, words)
    for offer in result.offers:
        assert offer.source == SOURCES[name].credit and offer.observed_at == NOW.date()
        assert offer.basis == SOURCES[name].basis and bool(offer.interruption) == offer.is_spot
    told = {offer for offer in load(NOW.date()).offers if offer.source == SOURCES[name].credit}
    if name != "skypilot":  # which has no dates, and gives way to what has
        assert told >= set(result.offers)  # what was fetched is what is read


@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_only_the_source_that_wants_a_key_is_sent_one(server: PriceServer, name: str) -> None:
    fetched(server, name)
    assert set(server.authorization.values()) == ({"Bearer secret"} if name == "lambda" else {""})


def page_of(name: str) -> str:
    return {"coreweave": "listed", "together": "listed"}.get(name, name)


SPOILS = {
    "500": (lambda page: (500, b"internal error"), "HTTP 500 ('internal error'); try again later"),
    "html": (lambda page: (200, b"<!DOCTYPE html><html>Sign in</html>"), "sent an HTML page, not (JSON|CSV)"),
    "half a page": (lambda page: (200, page[: len(page) // 3]), "breaks off"),
    "empty": (lambda page: (200, b""), "no JSON|lacks the columns"),
    "other JSON": (lambda page: (200, b"[]"), "was expected|lacks the columns"),
    "404": (lambda page: (404, b"gone"), "the interface has moved"),
    "redirect": (lambda page: (302, b""), "it has moved to None"),
}


@pytest.mark.parametrize("fault", SPOILS)
@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_a_spoiled_page_keeps_the_table_and_says_so(server: PriceServer, name: str, fault: str) -> None:
    before = fetched(server, name).offers
    kept = cache_path(name).read_bytes()
    spoil, words = SPOILS[fault]
    server.spoil[page_of(name)] = spoil
    result = fetched(server, name)
    assert re.search(words, result.reason) or words in result.reason, result.reason
    assert f"its table of 2026-11-28 is kept ({len(before)} offers)" in result.reason
    assert set(result.offers) == set(before) and cache_path(name).read_bytes() == kept


@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_an_answer_that_breaks_off(server: PriceServer, name: str) -> None:
    server.cut.add(page_of(name))
    assert "broke off" in fetched(server, name).reason
    assert not cache_path(name).exists()


@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_a_slow_source(server: PriceServer, name: str) -> None:
    server.delay_s[page_of(name)] = 0.3
    assert "did not answer within 0.05 s" in fetched(server, name, timeout_s=0.05).reason


def test_a_source_that_drips(server: PriceServer) -> None:
    """Each byte comes in time, the whole never."""
    server.drip_s["lium"] = 0.02
    assert "within 0.2 s" in fetched(server, "lium", timeout_s=0.2).reason


RENAMED = {
    "vast": "dph_total", "runpod": "communityPrice", "azure": "retailPrice", "aws": "PricePerUnit",
    "lambda": "price_cents_per_hour", "coreweave": "usd_hr", "together": "usd_hr", "listed": "usd_hr",
    "lium": "price_per_gpu_hour", "skypilot": "SpotPrice",
}  # fmt: skip


@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_a_renamed_field_is_named(server: PriceServer, name: str) -> None:
    renamed = RENAMED[name]
    server.spoil[page_of(name)] = lambda page: (200, page.replace(renamed.encode(), b"cost_total"))
    reason = fetched(server, name).reason
    assert renamed in reason and "changed" in reason and "the snapshot holds" in reason


def tenfold(page: bytes) -> tuple[int, bytes]:
    """Every price of a page times ten, as when cents become mills."""
    fields = rb"dph_total|min_bid|\w+Price|price_cents_per_hour|usd_hr|price_per_gpu_hour"
    for pattern in (rb'("(?:' + fields + rb')": )([\d.]+)()', rb"(Hrs,)([\d.]+)()", rb"(?m)(,)([\d.]+)(,[\d.]*)$"):
        page = re.sub(pattern, lambda m: m[1] + str(float(m[2]) * 10).encode() + m[3], page)
    return 200, re.sub(rb"(?m)(,)([\d.]+)$", lambda m: m[1] + str(float(m[2]) * 10).encode(), page)


@pytest.mark.parametrize("name", HTTP_SOURCES)
def test_ten_times_the_price_is_not_believed(server: PriceServer, name: str) -> None:
    before = fetched(server, name).offers
    server.spoil[page_of(name)] = tenfold
    result = fetched(server, name)
    assert "cannot be" in result.reason and "is kept" in result.reason, result
    assert "limit" in result.reason and "USD per GPU-hour" in result.reason  # value, limit and reason of the first
    assert set(result.offers) == set(before)


def test_one_absurd_price_is_refused_and_the_rest_answers(server: PriceServer) -> None:
    server.spoil["runpod"] = lambda page: (200, page.replace(b'"communityPrice": 2.69', b'"communityPrice": 26.9'))
    result = fetched(server, "runpod")
    assert not result.reason and [o.seller for o in result.offers if o.gpu == "H100-SXM" and not o.is_spot] == [
        "RunPod secure"
    ]
    assert any("26.9 USD per GPU-hour" in str(fault) and "implausible" in str(fault) for fault in result.refused)


def test_a_passing_failure_is_asked_once_more(server: PriceServer) -> None:
    answers = iter([(503, b"busy")])
    server.spoil["lium"] = lambda page: next(answers, (200, page))
    assert fetched(server, "lium").is_fresh and len(server.seen) == 2


def test_the_key_is_named_when_it_is_missing(server: PriceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMBDA_API_KEY")
    result = fetched(server, "lambda")
    assert "environment variable LAMBDA_API_KEY is not set" in result.reason and not server.seen
    monkeypatch.setenv("LAMBDA_API_KEY", "wrong")
    server.spoil["lambda"] = lambda page: (401, b"{}")
    assert "check the key in LAMBDA_API_KEY" in fetched(server, "lambda").reason


def test_all_sources_at_once(server: PriceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fails, one lacks its key, the others answer."""
    monkeypatch.delenv("LAMBDA_API_KEY")
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(cache_path("x")))
    server.spoil["azure"] = lambda page: (500, b"")
    told: list[str] = []
    results = refresh(urls=server.urls, now=NOW, on_done=lambda done: told.append(done.source))
    assert [result.source for result in results] == list(SOURCES) and set(told) == set(SOURCES)
    by_name = {result.source: result for result in results}
    assert by_name["lambda"].is_skipped and "LAMBDA_API_KEY" in by_name["lambda"].reason
    assert "HTTP 500" in by_name["azure"].reason
    fresh = [name for name, result in by_name.items() if result.is_fresh]
    assert set(fresh) >= set(HTTP_SOURCES) - {"lambda", "azure"}
    assert {offer.seller for offer in load(NOW.date()).offers} >= {o.seller for o in snapshot()} | {"Vast.ai", "Lium"}


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    (result,) = refresh(["vast"], urls={"vast": "http://127.0.0.1:9/"}, now=NOW)
    assert result.reason.startswith("no connection to http://127.0.0.1:9/") and "the snapshot holds" in result.reason
    assert load(NOW.date()).offers


def test_an_address_may_stand_in_the_environment(server: PriceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_LIUM_URL", server.urls["lium"])
    (result,) = refresh(["lium"], now=NOW)
    assert result.is_fresh
    monkeypatch.setenv("SHOESTRING_LIUM_URL", "file:///etc/passwd")
    assert "no http(s) address" in refresh(["lium"], now=NOW)[0].reason


def test_unknown_source(server: PriceServer) -> None:
    with pytest.raises(BadInput, match=r"no price source 'vastai'; there are: vast"):
        refresh(["vastai"])


def test_a_wrong_clock_is_told_and_the_servers_date_taken(server: PriceServer) -> None:
    server.date = "Tue, 01 Dec 2026 09:00:00 GMT"
    result = fetched(server, "lium")
    assert (
        "this machine's clock says 2026-11-28 12:00" in result.note and "the server's 2026-12-01 09:00" in result.note
    )
    assert {offer.observed_at for offer in result.offers} == {date(2026, 12, 1)}
    (note,) = [note for note in load(NOW.date()).notes if "clock" in note]
    assert "dated up to 2026-12-01" in note


def test_azures_next_page_must_be_azures(server: PriceServer) -> None:
    server.spoil["azure"] = lambda page: (200, re.sub(rb'"http[^"]*page=2"', b'"http://elsewhere.example/x"', page))
    assert "the next page is at another host" in fetched(server, "azure").reason


def test_a_damaged_cache_is_left_out_and_named(server: PriceServer) -> None:
    fetched(server, "lium")
    fetched(server, "vast")
    for damage in ("{", '{"offers": [{"seller": 1}]}', "[]", '{"offers": 3}'):
        cache_path("lium").write_text(damage, encoding="utf-8")
        table = load(NOW.date())
        assert any("refresh lium" in note for note in table.notes), damage
        assert {o.seller for o in table.offers} >= {"Vast.ai", "Lium"}  # the snapshot has Lium too


def test_an_edited_cache_is_checked_again(server: PriceServer) -> None:
    fetched(server, "lium")
    text = cache_path("lium").read_text(encoding="utf-8")
    cache_path("lium").write_text(
        text.replace('"usd_per_gpu_hour": 3.99', '"usd_per_gpu_hour": -3.99'), encoding="utf-8"
    )
    assert not [o for o in load(NOW.date()).offers if o.usd_per_gpu_hour <= 0]


def test_rows_of_a_whole_seller_end_when_its_parts_are_known(server: PriceServer) -> None:
    def sellers() -> set[str]:
        return {o.seller for o in load(NOW.date()).offers if o.gpu == "L4" and o.seller.startswith("RunPod")}

    assert sellers() == {"RunPod"}  # a list of March that does not say which cloud
    fetched(server, "runpod")
    assert sellers() == {"RunPod secure"}


def test_undated_catalogs_only_fill_gaps_and_fresh_words_of_a_seller_come_first(server: PriceServer) -> None:
    """SkyPilot's undated row says 2.95 of Nebius where a dated copy says 4.50; nobody else knows its spot price."""
    fetched(server, "skypilot")
    fetched(server, "lium")
    table = load(NOW.date()).offers
    assert {o.usd_per_gpu_hour for o in table if o.seller == "Nebius" and o.gpu == "H100-SXM"} == {4.5, 1.25}
    assert {o.basis for o in table if o.seller == "Lium" and o.gpu == "H200"} == {"quoted"}
    assert {o.basis for o in table if o.seller == "Lium" and o.gpu == "B200"} == {"third-party copy"}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # gpuhunt leaves its files open
def test_gpuhunt_where_it_is_installed(server: PriceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself, on a folder of its own CSV files."""
    if importlib.util.find_spec("gpuhunt") is None:
        result = fetched(server, "gpuhunt")
        assert "pip install 'shoestring[gpuhunt]'" in result.reason and "the snapshot holds" in result.reason
        return
    head = "instance_name,location,price,cpu,memory,gpu_vendor,gpu_count,gpu_name,gpu_memory,spot,disk_size\n"
    row = "1L40S.20V,FIN-01,{},20,60,nvidia,1,L40S,48,{},\n"
    for name in ("gcp", "nebius", "oci", "verda", "cloudrift"):
        rows = row.format("1.59", "False") + row.format("0.94", "True") if name == "verda" else ""
        (tmp_path / f"{name}.csv").write_text(head + rows, encoding="utf-8")
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(tmp_path))
    assert brief(fetched(server, "gpuhunt").offers) == [
        ("Verda", "FIN-01", "L40S", 1, 1.59, False),
        ("Verda", "FIN-01", "L40S", 1, 0.94, True),
    ]
    (tmp_path / "verda.csv").unlink()
    assert "gpuhunt could not load its catalog" in fetched(server, "gpuhunt").reason
