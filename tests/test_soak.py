"""The soak, in short: a served base and two adapters under everything that clients do, bounded by requests."""

from __future__ import annotations

from bench.soak import soak
from bench.soak_adapters import NAMES, answers
from bench.soak_load import Tally, is_whole, know, unchunked
from shoestring.serve.wire import Answer


def test_no_two_answers_are_alike() -> None:
    every = [answer for name in NAMES for answer in answers(name)]
    assert len(set(every)) == len(every)


def test_outcomes_by_hand() -> None:
    know(NAMES[:2])
    own, others = answers("north")[0], answers("south")[0]
    tally = Tally()
    for said, expected in ((own, own), (others, own), ("", own), (own, None), ("any words", None)):
        tally.judge(Answer("x", 0.0, text=said, status=200), expected)
    tally.judge(Answer("x", 0.0, status=429, error="status 429", retry_after_s=1), own)
    tally.judge(Answer("x", 0.0, status=429, error="status 429"), own)
    tally.judge(Answer("x", 0.0, error="cut off"), own)
    tally.judge(Answer("x", 0.0, status=404, error="status 404"), own, may_be_gone=True)
    tally.judge(Answer("x", 0.0, status=404, error="status 404"), own)
    assert tally.counts == {
        "answered": 2, "crossed": 3, "rejected_429": 1, "429_without_retry_after": 1, "lost": 2, "gone": 1,
    }  # fmt: skip
    assert tally.num_requests == 10


def test_a_response_is_whole_by_its_length() -> None:
    head = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\n"
    assert is_whole(head + b"1234") and not is_whole(head + b"123") and not is_whole(head[:-4])
    assert not is_whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert unchunked(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n") == b"abcde"


def test_nothing_is_lost_or_crossed() -> None:
    told = soak(minutes=None, num_requests=250, num_adapters=2, pause=0.2)
    assert told["failures"] == [], told
    assert (told["lost"], told["crossed"]) == (0, 0)
    assert told["requests"] >= 250 and told["outcomes"]["answered"] > 50
    assert told["rejected_429"] > 0  # the bursts are larger than the queue
    assert told["outcomes"]["refused_401"] and told["outcomes"]["refused_400"]
    assert not any(told["left_after"].values()) and len(told["left_after"]) == 3
