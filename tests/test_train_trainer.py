"""train/: one rung trains, stops, continues and refuses as it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shoestring import files
from shoestring.errors import BudgetStopped, DoesNotFit, Interrupted, RunFolderError, TrainingError
from shoestring.records import Device, Example, Message, TrainSettings
from shoestring.train import checkpoint, device, loss, trainer
from shoestring.train.adapter import build_adapter, is_whole, restore
from shoestring.train.attention import causal_attention
from shoestring.train.base import load_base, load_tokenizer
from shoestring.train.device import CLEAR_REFS, peak_bytes
from shoestring.train.loop import StepItems, build_trainer
from shoestring.train.objective import Objective
from shoestring.train.schedule import Schedule
from shoestring.train.tokens import encode_example
from shoestring.train.trainer import eval_steps, named_faults, thin_history, train_rung
from tests.tiny import make_model

EXACT = Device("cpu", "cpu", 2**33, 1, "float32", "so that sums can be compared")
HALF = Device("cpu", "cpu", 2**33, 1, "bfloat16", "")


def settings(**changes) -> TrainSettings:
    values = {
        "method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "num_epochs": 2, "batch_tokens": 512,
        "micro_batch_tokens": 256, "seq_len": 128, "warmup_frac": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "num_evals": 3, "patience": 2, "num_threads": 1, "seed": 0, "max_new_tokens": 8, "reasons": {},
    }  # fmt: skip
    return TrainSettings(**{**values, **changes})


def additions(num_rows: int, first: int = 0) -> list[Example]:
    return [
        Example((Message("user", f"one more than {i}?"), Message("assistant", str(i + 1))), (1, 2), "sums", i)
        for i in range(first, first + num_rows)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def rung(tiny, tmp_path):
    """Trains in tmp_path/rung; keyword arguments as train_rung's, settings by name."""

    lines = []

    def run(
        out="rung", dev_rows=8, num_rows=80, metric=lambda model, tokenizer: 0.0, device=HALF, stop=None, **changes
    ):
        return train_rung(
            model=tiny,
            train=additions(num_rows),
            dev=additions(dev_rows, 500),
            out_dir=tmp_path / out,
            settings=settings(**changes),
            device=device,
            dev_metric=metric,
            log=lambda line: lines.append(line) if not line.startswith("Rung ") else None,
            **({"should_stop": stop} if stop else {}),
        )

    run.folder, run.lines = tmp_path, lines
    return run


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def recorded(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- numbers


def test_the_loss_is_the_models_own_on_answer_tokens(tiny):
    """Against transformers' loss with -100 on prompt and padding and a full attention mask, gradients included."""
    tokenizer = load_tokenizer(tiny)
    rows = [encode_example(tokenizer, e) for e in additions(5, 8)]
    batch = loss.collate(rows, tokenizer.pad_token_id)
    labels = torch.full_like(batch["ids"], -100)
    for index, row in enumerate(rows):
        labels[index, row.num_prompt_tokens : len(row.ids)] = torch.tensor(row.ids[row.num_prompt_tokens :])
    mask = (torch.arange(labels.shape[1]) < torch.tensor([len(r.ids) for r in rows])[:, None]).long()
    model = load_base(tiny, device=EXACT).requires_grad_(True)
    theirs = model(input_ids=batch["ids"], attention_mask=mask, labels=labels).loss
    theirs.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    for path in (loss.CHUNKED, loss.AT_LOSS_TOKENS, loss.FULL):
        model.zero_grad()
        ours = loss.loss_sum(model, batch, path) / len(batch["targets"])
        ours.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    assert loss.choose_path(model, batch) == loss.CHUNKED
    model.config.final_logit_softcapping = 30.0
    assert loss.choose_path(model, batch) == loss.FULL


def test_rounding_shapes_up_changes_no_gradient(tiny):
    tokenizer = load_tokenizer(tiny)
    rows = [encode_example(tokenizer, e) for e in additions(5, 8)]
    model = load_base(tiny, device=EXACT).requires_grad_(True)
    found = []
    for rounded in (False, True):
        batch = loss.collate(rows, tokenizer.pad_token_id, rounded=rounded)
        model.zero_grad()
        summed = loss.loss_sum(model, batch)
        summed.backward()
        found.append((summed.item(), [p.grad.clone() for p in model.parameters()]))
    assert batch["ids"].shape[1] % loss.ROUND_WIDTH == 0 == len(batch["targets"]) % loss.ROUND_TARGETS
    assert loss.num_loss_tokens(rows) == (batch["targets"] != loss.IGNORED).sum()
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_micro_batches_of_any_size_give_the_same_gradients(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny)
    rows = [encode_example(tokenizer, e) for e in additions(6, 95)]
    lengths = tuple(len(r.ids) for r in rows)
    found = []
    for step in (((0, 1, 2, 3, 4, 5),), ((0, 1), (2,), (3, 4, 5))):
        model = build_adapter(tiny, settings(), EXACT)
        items = StepItems(Objective([(row,) for row in rows], tokenizer.pad_token_id), Schedule((step,), lengths, (0,)))
        from transformers import TrainerCallback

        trainer = build_trainer(model, items, settings(), EXACT, tmp_path, TrainerCallback(), loss.AT_LOSS_TOKENS)
        total = trainer.training_step(model, items[0])
        found.append((float(total), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-7)


def test_mean_loss_does_not_depend_on_batches(tiny):
    tokenizer = load_tokenizer(tiny)
    rows = [encode_example(tokenizer, e) for e in additions(9, 95)]
    model = load_base(tiny, device=EXACT)
    learned = Objective([(row,) for row in rows], tokenizer.pad_token_id)
    means = [learned.measure(model, batch_tokens=n)[0] for n in (1, 80, 10_000)]
    assert means == pytest.approx([means[0]] * 3, rel=1e-5)


def test_short_row_attention_is_sdpa():
    torch.manual_seed(0)
    query = torch.randn(2, 4, 9, 16, requires_grad=True)
    key, value = (torch.randn(2, 2, 9, 16, requires_grad=True) for _ in range(2))
    outputs = []
    for attend in (
        lambda: causal_attention(query, key, value, 0.3),
        lambda: torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True, scale=0.3
        ).transpose(1, 2),
    ):
        out = attend()
        outputs.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value))))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_evaluations_are_even_and_end_at_the_last_step():
    assert sorted(eval_steps(10, 3)) == [4, 7, 10]
    assert sorted(eval_steps(2, 6)) == [1, 2]
    lines = [{"step": i, "loss": float(i), "learning_rate": 0.1} for i in range(1, 1001)]
    thin = thin_history(lines)
    assert len(thin) <= 150 and thin[-1]["step"] == 1000 and thin[0]["loss"] == sum(range(1, 8)) / 7


# ---------------------------------------------------------------- a whole rung


def test_a_rung_learns_and_says_what_it_did(rung, tiny):
    seen = []

    def metric(model, tokenizer):
        assert not model.training
        ids = torch.tensor([tokenizer("one").input_ids])
        seen.append(model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape)
        return len(seen) / 10

    result = rung(metric=metric, num_epochs=4)
    lines = recorded(rung.folder / "rung")
    assert lines == list(range(1, result.num_steps + 1))
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert result.best_step == result.num_steps and result.dev_metric == pytest.approx(0.3) and len(seen) == 3
    rows = [encode_example(load_tokenizer(tiny), e) for e in additions(80)]
    assert result.num_train_tokens == 4 * sum(len(r.ids) for r in rows) > result.num_computed_tokens > 0
    assert result.num_loss_tokens == 4 * sum(len(r.ids) - r.num_prompt_tokens for r in rows)
    assert result.settings["supervised_first_row"] == "1<|end|>" and result.settings["loss_path"] == loss.CHUNKED
    assert result.wall_s > 0 and result.peak_bytes > 2**26
    config = json.loads((rung.folder / "rung/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny and config["lora_dropout"] == 0.0
    linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == linear
    assert (rung.folder / "rung/adapter/tokenizer.json").is_file()


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux can reset the mark")
def test_the_peak_is_that_of_training_not_of_what_went_before(rung):
    torch.ones(150_000_000).sum()  # 600 MB, given back
    before = peak_bytes(HALF)
    result = rung()
    assert 2**26 < result.peak_bytes < before - 300_000_000
    assert result.settings["peak"] == "resident size of the process"


def test_without_a_mark_to_reset_the_peak_says_what_it_covers(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "CLEAR_REFS", tmp_path / "proc" / "clear_refs")
    assert "work before training included" in device.reset_peak(HALF) and peak_bytes(HALF) > 2**26


def test_training_stops_early_and_keeps_the_best(rung):
    values = iter([0.4, 0.9, 0.5, 0.6, 0.7, 0.8])
    result = rung(metric=lambda model, tokenizer: next(values), num_evals=6, num_epochs=4, patience=2)
    marks = sorted(eval_steps(result.num_steps, 6))
    assert result.stopped_early and result.dev_metric == 0.9
    evaluated = [p["step"] for p in result.history if "dev_metric" in p]
    assert result.best_step == evaluated[1] and result.num_steps == evaluated[3] and len(marks)
    best = rung.folder / "rung/best" / f"step-{result.best_step}" / "adapter_model.safetensors"
    assert best.read_bytes() == adapter_bytes(rung.folder / "rung")
    again = rung(metric=lambda model, tokenizer: next(values), num_evals=6, num_epochs=4, patience=2)
    assert again.num_steps == result.num_steps
    assert best.read_bytes() == adapter_bytes(rung.folder / "rung")


def test_without_dev_rows_the_last_adapter_is_kept(rung):
    result = rung(dev_rows=0, metric=None)
    assert not result.stopped_early and result.dev_metric is None and result.best_step == result.num_steps
    assert adapter_bytes(rung.folder / "rung")


def test_qlora_trains_through_an_evaluation(rung):
    pytest.importorskip("bitsandbytes")
    result = rung(method="qlora")
    assert result.settings["base_format"].startswith("nf4")
    assert result.history[-1]["loss"] < result.history[0]["loss"]


# ---------------------------------------------------------------- continuing


def test_stopped_twice_and_continued_gives_the_same_bytes(rung):
    rung("whole")
    calls = {"n": 0}

    def budget(wall_s):
        assert wall_s > 0
        calls["n"] += 1
        return BudgetStopped("the budget is spent") if calls["n"] == 2 else None

    def terminate(wall_s):
        calls["n"] += 1
        if calls["n"] == 4:  # asked once before the step it continues with
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(BudgetStopped):
        rung("parts", stop=budget)
    assert recorded(rung.folder / "parts") == [1, 2]
    calls["n"] = 0
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 5"):
        rung("parts", stop=terminate)
    result = rung("parts")
    assert recorded(rung.folder / "parts") == list(range(1, result.num_steps + 1))
    assert adapter_bytes(rung.folder / "parts") == adapter_bytes(rung.folder / "whole")


def test_damaged_and_half_written_checkpoints_are_passed_over(rung):
    rung("whole")
    rung("rung")
    checkpoints = rung.folder / "rung/checkpoints"
    older, newest = sorted(checkpoints.iterdir(), key=lambda p: int(p.name.split("-")[1]))
    os.truncate(newest / "optimizer.pt", 1000)
    # One that a kill cut short in the writing, and one in the removal, which is no longer sealed.
    for half in (checkpoints / f"checkpoint-{int(newest.name.split('-')[1]) + 1}", checkpoints / "checkpoint-1"):
        half.mkdir()
        (half / "adapter_model.safetensors").write_bytes(b"half")
    shutil.rmtree(rung.folder / "rung/adapter")
    assert rung.lines == []
    result = rung("rung")
    removed, continued = rung.lines
    assert newest.name in removed and "damaged, so removed" in removed
    assert f"from the checkpoint of step {checkpoint.step_of(older)}" in continued
    assert older.exists() and all(checkpoint.is_intact(folder) for folder in checkpoints.iterdir())
    assert recorded(rung.folder / "rung") == list(range(1, result.num_steps + 1))
    assert adapter_bytes(rung.folder / "rung") == adapter_bytes(rung.folder / "whole")


def test_other_settings_begin_anew_and_say_so(rung):
    rung()
    result = rung(learning_rate=5e-3)
    assert "began anew" in result.settings["restarted"]
    assert recorded(rung.folder / "rung") == list(range(1, result.num_steps + 1))


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda best: (best / "adapter_model.safetensors").write_bytes(b"")])
def test_a_damaged_best_adapter_is_not_built_on(rung, damage):
    values = iter([0.9, 0.5, 0.4] * 2)
    result = rung(metric=lambda model, tokenizer: next(values))
    before = adapter_bytes(rung.folder / "rung")
    damage(rung.folder / "rung/best" / f"step-{result.best_step}")

    again = rung(metric=lambda model, tokenizer: next(values))

    assert len(rung.lines) == 1 and "missing or damaged, so training began anew" in rung.lines[0]
    assert adapter_bytes(rung.folder / "rung") == before and again.wall_s > result.wall_s


def test_a_lost_adapter_is_put_back_from_whatever_holds_it(rung):
    result = rung()
    folder = rung.folder / "rung"
    sums, weights = result.settings["adapter_sha256"], f"step-{result.best_step}/adapter_model.safetensors"
    assert is_whole(folder / "adapter", sums) and "tokenizer.json" in sums

    (folder / "best" / weights).write_bytes(b"x")
    shutil.rmtree(folder / "adapter")
    found = restore(folder, result)  # the last checkpoint may be another step than the best one
    assert found == (result.best_step == result.num_steps)
    shutil.rmtree(folder / "best")
    shutil.rmtree(folder / "checkpoints")
    assert not restore(folder, result)


def test_killed_at_random_moments_the_adapter_is_bit_equal(tiny):
    command = ["-m", "bench.kill", "--json", "--forked", "--kills", "4", "--rows", "90", "--model", tiny]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["bit_equal"], result["lost"]) == (True, 0)


# ---------------------------------------------------------------- refusals


def test_a_diverging_loss_is_named_with_step_and_remedy(rung, monkeypatch):
    monkeypatch.setattr(trainer, "examine", lambda ready: [])  # which refuses the rate
    with pytest.raises(TrainingError, match=r"step \d+: loss .*lower train\.learning_rate"):
        rung(learning_rate=1e38, max_grad_norm=0.0)


@pytest.mark.parametrize(
    ("answer", "changes", "message"),
    [("x", {"seq_len": 16}, "seq_len is 16"), ("", {}, "")],
)
def test_rows_that_teach_nothing_or_are_too_long_are_refused(tiny, tmp_path, answer, changes, message):
    rows = [Example((Message("user", "a question"), Message("assistant", answer)), (1, 2), "bad", 7)]
    with pytest.raises(ValueError if not answer else TrainingError, match=message or "bad:7"):
        train_rung(
            model=tiny, train=rows, dev=[], out_dir=tmp_path, settings=settings(**changes), device=HALF,
            dev_metric=lambda model, tokenizer: 0.0,
        )  # fmt: skip


def test_an_adapter_without_effect_is_refused(rung, monkeypatch):
    monkeypatch.setattr(trainer, "examine", lambda ready: [])  # which refuses the rate
    with pytest.raises(TrainingError, match="changes no logit"):
        rung(learning_rate=1e-45)


def test_full_disks_and_full_accelerators_are_named(tmp_path, monkeypatch):
    """Three libraries write a checkpoint and raise three kinds of exception for one full disk."""
    from safetensors import SafetensorError

    full = "No space left on device (os error 28)"
    for fault in (OSError(28, "No space left"), SafetensorError(f"I/O error: {full}"), RuntimeError(full)):
        with pytest.raises(RunFolderError, match="the disk is full"), named_faults(tmp_path, settings()):
            raise fault
    broken = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    with pytest.raises(RunFolderError, match=r"unexpected pos.*run the same"), named_faults(tmp_path, settings()):
        raise broken
    monkeypatch.setattr(files, "_free_bytes", lambda folder: 4096)
    with pytest.raises(RunFolderError, match="the disk is full"), named_faults(tmp_path, settings()):
        raise broken
    with pytest.raises(DoesNotFit, match=r"micro_batch_tokens=128"), named_faults(tmp_path, settings()):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="else"), named_faults(tmp_path, settings()):
        raise RuntimeError("something else")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        train_rung(
            model="x", train=[], dev=[], out_dir=tmp_path / "file" / "rung", settings=settings(), device=HALF,
            dev_metric=lambda model, tokenizer: 0.0,
        )  # fmt: skip
