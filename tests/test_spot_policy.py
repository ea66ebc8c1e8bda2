"""When to be on spot, on demand or nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoestring.launch.policy import SpotPolicy, SpotState

# Ten hours of work in twenty, half an hour to start, half of the work done at half time: on the line.
ON_THE_LINE = SpotState(10, 20, 5, 10, 0.5, "wait", False)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, "wait"),  # exactly on the line
        ({"done_h": 4.9}, "on_demand"),  # behind it
        ({"done_h": 4.9, "spot_available": True}, "spot"),  # a spot machine is taken all the same
        ({"on": "spot", "spot_available": True, "done_h": 4.9}, "spot"),
        ({"on": "on_demand"}, "on_demand"),
        ({"on": "on_demand", "spot_available": True}, "on_demand"),  # not two restarts ahead yet
        ({"on": "on_demand", "spot_available": True, "unsaved_h": 0.5}, "spot"),
        ({"elapsed_h": 14.5}, "on_demand"),  # 5.5 h are left for 5 h of work and half an hour to start
        ({"elapsed_h": 14.5, "on": "spot", "spot_available": True}, "on_demand"),
        ({"elapsed_h": 14.4, "on": "spot", "spot_available": True}, "spot"),
        ({"elapsed_h": 14.4, "spot_available": True}, "on_demand"),  # a start on spot would use the slack up
        ({"elapsed_h": 14.5, "on": "on_demand", "spot_available": True, "unsaved_h": 4.0}, "spot"),
        ({"done_h": 10}, "wait"),  # nothing is left to do
    ],
)
def test_decisions_by_hand(change: dict[str, object], place: str) -> None:
    assert SpotPolicy().decide(replace(ON_THE_LINE, **change)) == place  # type: ignore[arg-type]


def test_what_a_taken_machine_would_lose_does_not_count_as_slack() -> None:
    unsaved = replace(ON_THE_LINE, elapsed_h=14.4, on="spot", spot_available=True, unsaved_h=3.0)
    assert SpotPolicy().decide(unsaved) == "spot"
    assert SpotPolicy(margin_h=0.2).decide(unsaved) == "on_demand"
