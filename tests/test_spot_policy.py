"""When to be on spot, on demand or nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoestring.launch.policy import Learning, SpotPolicy, SpotState
from shoestring.records import Estimate

# Ten hours of work in twenty, half an hour to start, half of the work done at half time: on the line. Spot machines are
# taken every two hours and back after six: there a quarter of the time, a third at best.
ON_THE_LINE = SpotState(10, 20, 5, 10, 0.5, "wait", False)
POLICY = SpotPolicy(hazard_per_h=0.5, spot_frac=0.25, spot_price_frac=0.3)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, "wait"),  # exactly on the line
        ({"done_h": 4.9}, "on_demand"),  # behind it, and a third of 9.5 h is not enough for 5.1 h
        ({"done_h": 4.9, "spot_available": True}, "spot"),  # a spot machine is taken all the same
        ({"on": "spot", "spot_available": True, "done_h": 4.9}, "spot"),
        ({"deadline_h": 30, "done_h": 3.2}, "on_demand"),  # behind 3.33 h; 6.8 h left against a third of 19.5 h
        ({"deadline_h": 40, "done_h": 2.4}, "wait"),  # behind 2.5 h; 7.6 h left against a third of 29.5 h: may suffice
        ({"on": "on_demand"}, "on_demand"),
        ({"on": "on_demand", "spot_available": True}, "spot"),  # two hours at 30 % are worth two starts of half an hour
        ({"elapsed_h": 14.5}, "on_demand"),  # 5.5 h are left for 5 h of work and half an hour to start
        ({"elapsed_h": 14.5, "on": "spot", "spot_available": True}, "on_demand"),
        ({"elapsed_h": 14.4, "on": "spot", "spot_available": True}, "spot"),
        ({"elapsed_h": 14.4, "spot_available": True}, "on_demand"),  # a start on spot would use the slack up
        ({"elapsed_h": 14.4, "on": "on_demand", "spot_available": True}, "on_demand"),
        ({"elapsed_h": 14.5, "on": "on_demand", "spot_available": True, "unsaved_h": 4.0}, "spot"),
        ({"done_h": 10}, "wait"),  # nothing is left to do
    ],
)
def test_decisions_by_hand(change: dict[str, object], place: str) -> None:
    assert POLICY.decide(replace(ON_THE_LINE, **change)) == place  # type: ignore[arg-type]


def test_machines_that_are_taken_at_once_are_not_gone_back_to() -> None:
    # A stay of two hours less the start gives 1.56 h of work for 0.6 h of on-demand's price; a start back costs 0.5 h.
    assert POLICY.spot_pays(0.5)
    assert not replace(POLICY, hazard_per_h=1.0).spot_pays(0.5)  # 0.61 h for 0.3, and 0.5 to start again
    assert not replace(POLICY, spot_price_frac=0.6).spot_pays(0.5)


def test_what_a_taken_machine_would_lose_does_not_count_as_slack() -> None:
    unsaved = replace(ON_THE_LINE, elapsed_h=14.4, on="spot", spot_available=True, unsaved_h=3.0)
    assert SpotPolicy().decide(unsaved) == "spot"
    assert SpotPolicy(margin_h=0.2).decide(unsaved) == "on_demand"


def test_where_spot_costs_more_than_on_demand_it_is_not_taken() -> None:
    # Taken every quarter hour, half an hour to start: an hour of work takes e^2 = 7.4 billed hours.
    often = replace(POLICY, hazard_per_h=4.0)
    assert not often.spot_is_cheaper(0.5)
    assert often.decide(replace(ON_THE_LINE, spot_available=True)) == "on_demand"


def test_a_run_learns_that_its_machines_are_taken_soon() -> None:
    learning = Learning(POLICY, hazard=Estimate(0.3, 0.1, 1.4))
    state = replace(ON_THE_LINE, elapsed_h=0.0, done_h=0.0, deadline_h=40.0, spot_available=True)
    places = []
    for number in range(120):  # every second look, ten minutes apart, the machine is gone and another is there
        on = "spot" if number % 2 and places[-1] == "spot" else "wait"
        places.append(learning.decide(replace(state, elapsed_h=number / 6, on=on)))  # type: ignore[arg-type]
    assert places[0] == "spot" and places[-1] == "on_demand"
    assert learning.seen.num_interruptions > 5 and learning.seen.running_h == pytest.approx(
        sum(place == "spot" for place in places[:-1]) / 6
    )
