"""bench.probe and bench.rate_search: their run files load, and a toy case goes from end to end."""

import pytest

import shoestring.train.search  # noqa: F401  # before the grid below is another
from bench import probe, rate_search
from shoestring.config import load_run_file


@pytest.mark.parametrize("data", sorted(probe.KINDS))
def test_run_files_load(tmp_path, data):
    path = probe.run_file(tmp_path, data, "shoestring-1m", 50, 1.0, ", learning_rate: search")
    assert load_run_file(path).train.learning_rate == "search"


def test_a_toy_search_is_compared_with_its_grid(monkeypatch):
    monkeypatch.setattr("shoestring.plan.search.grid", lambda derived: [derived])  # of the full trainings alone
    found = rate_search.measure("banking77", "shoestring-1m", 40, 1.0)
    assert list(found["full"]) == [f"{found['derived']:g}"] and len(found["trials"]) >= 5
    assert found["regret"] is None or found["regret"]["dev_loss"] >= 0
    assert 0 < found["cost"]["tokens_frac"] <= 2.5  # a round is one step at least, and this training has few


def test_a_toy_probe_is_compared_with_its_training(tmp_path, monkeypatch):
    from shoestring.train import timing

    monkeypatch.setattr(timing, "STEPS_S", 0.3)
    monkeypatch.setattr(probe, "step", lambda path, what: probe.worker(what, path))  # this process will do
    found = probe.measure("banking77", "shoestring-1m", 40, 1.0)
    assert found["num_steps"] > 0 and 0.2 < found["bytes"]["ratio"] < 5 and found["seconds"]["taken"] > 0
