"""train/gates.py and probe.py: planted failures are named, sane set-ups pass, weights are left as they were."""

import pytest
import torch

from bench import silent_failures
from shoestring.cli.main import run
from shoestring.errors import TrainingError
from shoestring.train.objective import Objective
from shoestring.train.preference import Kto
from shoestring.train.probe import examine, refuse
from shoestring.train.tokens import Encoded


def test_every_planted_failure_is_named_and_no_sane_set_up_alarms():
    result = silent_failures.measure("shoestring-1m")
    assert result["missed"] == {} and result["alarms"] == {} and result["false_alarms"] == 0
    assert result["caught"] == result["planted"] >= 20 and result["sane"] >= 10


def test_the_model_is_afterwards_as_it_was():
    with silent_failures.made("shoestring-1m") as ready:
        before = {name: p.detach().clone() for name, p in ready.tuned.named_parameters()}
        state, training = torch.random.get_rng_state(), ready.tuned.training
        assert examine(ready)
        assert torch.equal(state, torch.random.get_rng_state())
        for name, parameter in ready.tuned.named_parameters():
            assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert ready.tuned.training == training


def test_the_model_is_asked_on_a_few_rows_cut_short():
    rows = [(Encoded(list(range(900 + i)), 800),) for i in range(50)]
    few = Objective(rows, 0).probed().items
    assert [len(path.ids) for (path,) in few] == [32 + 6, 32 + 12, 32 + 18, 32 + 24]
    assert few[0][0].ids == [*range(24), *range(792, 800), *range(894, 900)] and few[3][0].ids[-1] == 948
    answers = [(Encoded([1, 2, *range(n)], 2),) for n in (5, 4, 3, 2, 1)]
    kto = Kto(answers, 0, 0.1, [[n % 2 == 1] for n in (5, 4, 3, 2, 1)], 64)
    kto.reference = torch.ones(10)
    few = kto.probed()
    assert [len(path.ids) - 2 for path in few.paths] == [1, 2, 4, 5] and few.desired == [True, False, False, True]
    assert few.reference is None and len(few.mismatched) == 4 and len(kto.paths) == 5


def test_a_refusal_names_row_and_remedy():
    _, plant, options = silent_failures.PLANTS["truncated answers"]
    with pytest.raises(
        TrainingError, match=r"answers_are_whole: 26 of 160 rows, first mail:1: .*; raise train.seq_len"
    ):
        refuse(silent_failures.planted("shoestring-1m", plant, options), "shoestring-1m")


def test_the_command_prints_every_gate(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lines = [f'{{"prompt": "What follows {i} when one counts?", "completion": "{i + 1}"}}' for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text(
        "name: counting\ntask: {kind: generate, bar: 0.5, metric: exact_match}\n"
        "data: {train: rows.jsonl}\nmodels: [shoestring-1m]\ntrain: {batch_tokens: 128}\n"
    )
    assert run(["check", "run.yaml"]) == 0
    told = capfd.readouterr().out
    assert "Ready to train" in told and "ok  every_matrix_learns" in told and "the first row teaches" in told
    assert run(["check", "run.yaml", "--model", "other"]) == 2
    assert "its rungs: shoestring-1m" in capfd.readouterr().err
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace("128}", "128, learning_rate: 0.9}"))
    assert run(["check", "run.yaml"]) == 1
    told = capfd.readouterr().out
    assert "1 of 27 gates refuse" in told and "next: leave train.learning_rate out" in told
