"""train/preference.py: by hand, against TRL's trainers, cut and packed in any way, and whole rungs that resume."""

import json
import math
import random

import pytest
import torch

from shoestring.errors import BadInput, BudgetStopped
from shoestring.messages import Example, Message, example_from_json, example_to_json
from shoestring.records import Device, TrainSettings
from shoestring.train import forest as forests
from shoestring.train import loss
from shoestring.train.adapter import build_adapter
from shoestring.train.attention import use_attention
from shoestring.train.base import load_tokenizer
from shoestring.train.loop import StepItems, begin_step, step_loss
from shoestring.train.objective import padded, require_learnable
from shoestring.train.preference import Dpo, Kto, Orpo, Preference, balanced, mismatched, objective
from shoestring.train.schedule import Schedule
from shoestring.train.tokens import Encoded
from shoestring.train.trainer import train_rung
from tests.tiny import make_model

EXACT = Device("cpu", "cpu", 2**33, 1, "float32", "so that sums can be compared")


def settings(**changes) -> TrainSettings:
    values = {
        "method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "num_epochs": 1, "batch_tokens": 2048,
        "micro_batch_tokens": 1024, "seq_len": 256, "warmup_frac": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "num_evals": 1, "patience": 2, "num_threads": 1, "seed": 0, "max_new_tokens": 8, "reasons": {},
    }  # fmt: skip
    return TrainSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def moved(tuned, seed: int = 1):
    """The adapter with B off zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B.default" in name:  # TRL keeps a copy beside it
                parameter.normal_(std=0.2)
    return tuned


@pytest.fixture
def tuned(tiny):
    made = moved(build_adapter(tiny, settings(), EXACT))
    use_attention(made.get_base_model())
    return made


def pairs(num: int, seed: int = 0, prompt_tokens: int | None = None) -> list[tuple[Encoded, Encoded]]:
    """Pairs of random tokens under a common prompt."""
    rng = random.Random(seed)

    def ids(size: int) -> list[int]:
        return [rng.randrange(1, 200) for _ in range(size)]

    made = []
    for _ in range(num):
        prompt = ids(prompt_tokens or rng.randint(2, 12))
        made.append(tuple(Encoded([*prompt, *ids(rng.randint(2, 9))], len(prompt)) for _ in range(2)))
    return made


# ---------------------------------------------------------------- by hand


def known(**values) -> dict:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_losses_by_hand():
    lp = torch.tensor([-2.0, -3.0])
    dpo = Dpo(pairs(1), 0, beta=0.5)
    # Gains 1 and -1, margin 2: -log sigmoid(1).
    assert float(dpo.losses(lp, known(reference=[-3.0, -2.0]))) == pytest.approx(math.log(1 + math.exp(-1)))
    # Mean log-probabilities -1 and -1.5: odds e^-1 / (1 - e^-1) and e^-1.5 / (1 - e^-1.5).
    odds = [math.exp(m) / (1 - math.exp(m)) for m in (-1.0, -1.5)]
    expected = 1.0 + 0.2 * math.log(1 + odds[1] / odds[0])
    orpo = Orpo(pairs(1), 0, beta=0.2)
    assert float(orpo.losses(lp, known(answer_tokens=[2.0, 2.0]))) == pytest.approx(expected)
    # Desired gained 1, undesired gained 2, the reference point is 0.5.
    kto = Kto(pairs(1), 0, 0.1, [(True, False)], 64)
    found = kto.losses(lp, known(reference=[-3.0, -5.0], desired=[True, False], point=0.5))
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.1 * 0.5, -0.1 * 1.5)]
    assert found.tolist() == pytest.approx([1 - sigmoid[0], 1 - sigmoid[1]])


def test_an_answer_that_is_certain_has_finite_odds():
    means = torch.tensor([0.0, -30.0], requires_grad=True)
    loss_ = Orpo(pairs(1), 0, beta=0.1).losses(means * 2, known(answer_tokens=[2.0, 2.0])).sum()
    loss_.backward()
    assert math.isfinite(float(loss_.detach())) and torch.isfinite(means.grad).all()


def test_the_rarer_kind_of_answer_is_weighed_up():
    assert balanced(50, 100) == balanced(40, 70) == (1.0, 1.0)  # 1 to 4/3
    assert balanced(20, 100) == (4.0, 1.0) and balanced(90, 100) == (1.0, 9.0)
    for num in range(1, 100):
        desired, undesired = balanced(num, 100)
        assert 1 - 1e-9 <= desired * num / (undesired * (100 - num)) <= 4 / 3 + 1e-9  # KTO, equation 8
    assert balanced(5, 5) == (1.0, 1.0)


def test_mismatched_answers_are_those_of_other_prompts():
    paths = [path for pair in pairs(8) for path in pair]
    made = mismatched(paths, longest=64)
    assert made == mismatched(paths, longest=64)
    own = {tuple(path.ids[path.num_prompt_tokens :]): path.ids[: path.num_prompt_tokens] for path in paths}
    for path, other in zip(paths, made, strict=True):
        assert other.ids[: other.num_prompt_tokens] == path.ids[: path.num_prompt_tokens]
        assert own[tuple(other.ids[other.num_prompt_tokens :])] != path.ids[: path.num_prompt_tokens]
    alike = [Encoded([1, 2, 3 + i, 9], 2) for i in range(4)]  # one prompt: an answer to it is all there is
    assert all(other.ids != path.ids for path, other in zip(alike, mismatched(alike, 64), strict=True))
    short, long = Encoded([1, 2, 3], 2), Encoded([4, 5, *range(20)], 2)
    assert [len(path.ids) for path in mismatched([short, long], 4)] == [4, 3]


# ---------------------------------------------------------------- as TRL computes it


def trl_trainer(kind: str, model, tokenizer, folder):
    from datasets import Dataset

    common = {
        "output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "max_length": None,
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    rows = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        arguments = ORPOConfig(**{**common, "max_length": 64}, beta=0.3)
        return ORPOTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
        )
    if kind == "kto":
        from trl import KTOConfig, KTOTrainer

        flagged = {"prompt": list("abcd"), "completion": list("efgh"), "label": [True, False, True, False]}
        arguments = KTOConfig(**common, beta=0.3)
        return KTOTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(flagged), processing_class=tokenizer
        )
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=model, args=DPOConfig(**common, beta=0.3), train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )  # fmt: skip


def gradient_of(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([
        p.grad.flatten() for n, p in model.named_parameters() if "lora_" in n and "default" in n and p.grad is not None
    ])  # fmt: skip


def ours_of(tuned, learned: Preference, path: str = loss.CHUNKED, collate=padded, cuts=None):
    """Mean loss of all items and its gradient, as a step of training computes it."""
    step = cuts or [tuple(range(len(learned.items)))]
    item = StepItems(learned, Schedule((tuple(step),), (), ()), collate)[0]
    begin_step(learned, tuned, item, path, EXACT)
    value = sum(step_loss(learned, tuned, batch, item["weight"], path, EXACT) for batch in item["micro_batches"])
    return float(value.detach()), gradient_of(tuned, value)


def split(path: Encoded) -> tuple[list[int], list[int]]:
    return path.ids[: path.num_prompt_tokens], path.ids[path.num_prompt_tokens :]


def close(ours, theirs, rel: float = 1e-5) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=rel)
    assert float((ours[1] - theirs[1]).norm()) <= rel * float(theirs[1].norm())


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def both(tiny, kind: str, tmp_path):
    """Our model, and the same in TRL's trainer, both moved on from the adapter they started from."""
    pytest.importorskip("trl")
    ours, theirs = (moved(build_adapter(tiny, settings(), EXACT), seed=3) for _ in range(2))
    return ours, theirs, trl_trainer(kind, theirs, load_tokenizer(tiny), tmp_path)


def test_dpo_is_trls(tiny, tmp_path):
    ours, theirs, trainer = both(tiny, "dpo", tmp_path)
    learned = Dpo(pairs(6), 0, beta=0.3)
    learned.prepare(ours, batch_tokens=128, path=loss.CHUNKED)
    for model in (ours, theirs):
        moved(model, seed=5)  # TRL keeps the adapter it was given as the reference
    rows = [
        {"prompt_ids": split(a)[0], "chosen_ids": split(a)[1], "rejected_ids": split(b)[1]} for a, b in learned.items
    ]
    value = trainer._compute_loss(trainer.model, trainer.data_collator(rows), False)
    close(ours_of(ours, learned), (float(value.detach()), gradient_of(theirs, value)))


def test_kto_is_trls(tiny, tmp_path):
    """Desired and undesired answers, TRL's reference point from the same mismatched answers."""
    ours, theirs, trainer = both(tiny, "kto", tmp_path)
    paths = [path for pair in pairs(6) for path in pair]
    flags = [(i % 3 != 0,) for i in range(len(paths))]
    learned = Kto([(path,) for path in paths], 0, 0.3, flags, longest=64, weights=(1.0, 1.5))
    learned.prepare(ours, batch_tokens=128, path=loss.CHUNKED)
    trainer.desirable_weight, trainer.undesirable_weight = learned.weights
    for model in (ours, theirs):
        moved(model, seed=5)
    rows = [
        {
            "prompt_ids": split(path)[0], "completion_ids": split(path)[1], "KL_completion_ids": split(other)[1],
            "label": flag,
        }
        for path, other, (flag,) in zip(paths, learned.mismatched, flags, strict=True)
    ]  # fmt: skip
    value = trainer._compute_loss(trainer.model, trainer.data_collator(rows), False)
    assert trainer._metrics["train"]["kl"][-1] > 0 or trainer._metrics["eval"]["kl"][-1] > 0
    close(ours_of(ours, learned), (float(value.detach()), gradient_of(theirs, value)))


def orpo_batch(pair) -> dict:
    made = {}
    for side, path in zip(("chosen", "rejected"), pair, strict=True):
        made[f"{side}_input_ids"] = torch.tensor([path.ids])
        made[f"{side}_attention_mask"] = torch.ones(1, len(path.ids), dtype=torch.long)
        labels = [*[-100] * path.num_prompt_tokens, *path.ids[path.num_prompt_tokens :]]
        made[f"{side}_labels"] = torch.tensor([labels])
    return made


@pytest.mark.parametrize("prompt_tokens", [1, None])
def test_orpo_is_trls(tiny, tmp_path, prompt_tokens):
    """TRL learns the prompt too: over prompts of one token the whole loss is compared, else without those tokens."""
    ours, theirs, trainer = both(tiny, "orpo", tmp_path)
    learned = Orpo(pairs(5, prompt_tokens=prompt_tokens), 0, beta=0.3)
    total = 0.0
    for pair in learned.items:
        value, _ = trainer.get_batch_loss_metrics(trainer.model, orpo_batch(pair))
        if prompt_tokens is None:
            chosen, _, _, _, nll = trainer.concatenated_forward(trainer.model, orpo_batch(pair))
            value = value - nll - chosen.mean()
        total = total + value / len(learned.items)
    close(ours_of(ours, learned), (float(total.detach()), gradient_of(theirs, total)))


# ---------------------------------------------------------------- cut and packed in any way


def made(kind: str, items) -> Preference:
    if kind == "kto":
        single = [(side,) if i % 3 else pair for i, pair in enumerate(items) for side in pair[: 1 if i % 3 else 2]]
        flags = [(True, False) if len(item) == 2 else (i % 2 == 0,) for i, item in enumerate(single)]
        return Kto(single, 0, 0.3, flags, longest=64)
    return {"dpo": Dpo, "orpo": Orpo}[kind](items, 0, 0.3)


@pytest.mark.parametrize("kind", ["dpo", "orpo", "kto"])
def test_neither_packing_nor_cuts_change_a_step(tuned, kind, monkeypatch):
    monkeypatch.setattr(loss, "plant", lambda paths, pad_id: forests.plant(paths, pad_id, min_saved=1))
    for seed in range(3):
        learned = made(kind, pairs(5, seed))
        with tuned.disable_adapter():
            learned.prepare(tuned, batch_tokens=64, path=loss.CHUNKED)
        alone = [(index,) for index in range(len(learned.items))]
        apart = ours_of(tuned, learned, loss.AT_LOSS_TOKENS, cuts=alone)
        close(ours_of(tuned, learned), apart)
        close(ours_of(tuned, learned, collate=loss.collate_forest), apart)
        assert learned.measure(tuned, batch_tokens=64)[0] == pytest.approx(apart[0], rel=1e-5)


def test_the_share_preferred_by_hand(tuned):
    items = pairs(40)
    learned = Dpo(items, 0, 0.3)
    learned.prepare(tuned, batch_tokens=256, path=loss.CHUNKED)
    assert learned.measure(tuned, batch_tokens=256, path=loss.CHUNKED)[1] == {
        "dev_preference": 0.0
    }  # equal is not preferred
    learned.reference += torch.tensor([-1.0, 0.0] * 30 + [0.0, -1.0] * 10)
    assert learned.measure(tuned, batch_tokens=256, path=loss.CHUNKED)[1] == {"dev_preference": 0.75}
    # Single answers are matched with one of the other kind each.
    paths = [(path,) for pair in items[:6] for path in pair]
    flags = [(True,)] * 7 + [(False,)] * 5
    matched = Kto(paths, 0, 0.1, flags, 64).pairs(range(12))
    assert matched[0] == (6, 7)  # of one prompt
    assert len(matched) == 5 == len({a for a, _ in matched}) and sorted(b for _, b in matched) == [7, 8, 9, 10, 11]


def test_pairs_cut_short_for_the_gates_still_differ():
    """Regression: sides that differ early ended alike, and rounding alone was compared."""
    tail = list(range(30, 90))
    items = [(Encoded([1, 2, 3, 5, *tail], 2), Encoded([1, 2, 3, 6, 7, *tail], 2)) for _ in range(6)]
    few = Dpo(items, 0, 0.1).probed()
    assert all(item[0].ids[:3] == [1, 2, 5] and item[1].ids[:3] == [1, 2, 6] for item in few.items)
    assert max(len(path.ids) for item in few.items for path in item) < 30


# ---------------------------------------------------------------- rows


def sums(num: int, kind: str, start: str = "Add. " * 9) -> list[Example]:
    """Sums whose wrong answers are one too low; under kto a third of them as pairs, the others as marked answers."""
    made = []
    for i in range(num):
        asked, right, wrong = (
            Message(*said)
            for said in (("user", f"{start}{i} plus one?"), ("assistant", str(i + 1)), ("assistant", str(i)))
        )
        is_pair = kind in ("dpo", "orpo") or (kind == "kto" and i % 3 == 0)
        if is_pair or kind == "sft":
            made.append(Example((asked, right), (1, 2), "sums", i + 1, rejected=(wrong,) if is_pair else ()))
        else:
            flag = i % 3 == 1
            made.append(Example((asked, right if flag else wrong), (1, 2), "sums", i + 1, desired=flag))
    return made


def test_a_marked_row_is_written_and_read_and_is_another_row():
    asked, said = Message("user", "a"), Message("assistant", "b")
    rows = [Example((asked, said), (1, 2), desired=flag) for flag in (None, True, False)]
    assert [example_from_json(example_to_json(row)) for row in rows] == rows
    assert rows[0].id == rows[1].id != rows[2].id
    assert "label" not in example_to_json(rows[0]) and example_to_json(rows[2])["label"] is False


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("dpo", sums(2, "dpo") + sums(1, "sft"), r"1 of 3 .* no rejected answer, first sums:1; .*objective: sft"),
        ("orpo", sums(5, "kto"), r"3 of 5 .* no rejected answer, first sums:2; .*kto, which learns from rows with"),
        ("kto", sums(2, "dpo") + sums(1, "sft"), r"1 of 3 .* neither marked nor pairs, first sums:1; give each a `lab"),
        ("kto", [r for r in sums(9, "kto") if r.desired], r"all 3 training rows are desired; add undesired ones"),
        ("kto", [r for r in sums(9, "kto") if r.desired is False], r"all 3 training rows are undesired; add desired"),
        ("sft", sums(9, "kto"), r"3 of 9 .* marked as undesired, first sums:3; leave them out"),
    ],
)
def test_rows_an_objective_cannot_learn_from_are_named(kind, rows, said):
    with pytest.raises(BadInput, match=rf"(?s)train.objective: {kind} .*{said}"):
        require_learnable(rows, kind, "training")
    require_learnable(sums(9, kind), kind, "training")


# ---------------------------------------------------------------- whole rungs


def rung(tiny, out, kind, stop=None, rows=None, **changes):
    rows = rows or sums(24, kind)
    return train_rung(
        model=tiny, train=rows, dev=rows[:6], out_dir=out, dev_metric=lambda m, t: 0.0, device=EXACT,
        settings=settings(**{
            "objective": kind, "learning_rate": 2e-3, "num_epochs": 2, "batch_tokens": 700, "num_evals": 2, **changes,
        }),
        **({"should_stop": stop} if stop else {}),
    )  # fmt: skip


def after(num_steps: int):
    """A should_stop that stops there."""
    calls = []
    return lambda wall_s: BudgetStopped("spent") if calls.append(1) or len(calls) == num_steps else None


def weights(out) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("kind", "method"), [("orpo", "lora"), ("kto", "lora"), ("kto", "qlora")])
def test_stopped_and_continued_to_the_same_bytes(tiny, tmp_path, kind, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    whole = rung(tiny, tmp_path / "whole", kind, method=method)
    with pytest.raises(BudgetStopped):
        rung(tiny, tmp_path / "parts", kind, after(2), method=method)
    assert (tmp_path / "parts" / "reference.json").is_file() == (kind == "kto")  # orpo needs none
    rung(tiny, tmp_path / "parts", kind, method=method)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert whole.settings["packing"] == "prefix forest" and whole.settings["objective"] == kind
    assert all(0 <= point["dev_preference"] <= 1 for point in whole.history if "dev_metric" in point)
    if kind == "kto":
        assert whole.history[0]["loss"] == pytest.approx(0.5, rel=1e-3)  # nothing preferred, weights 1 and 1
    assert "reference_is_the_start" in whole.settings["preflight"] or kind == "orpo"


def test_training_goes_on_from_another_runs_adapter(tiny, tmp_path):
    from shoestring.train.start import find_start

    rung(tiny, tmp_path / "first", "sft", num_evals=1)
    start = find_start(str(tmp_path / "first"), tiny)
    given = {"start": start.folder, "start_sha256": start.sha256, "learning_rate": 5e-4}
    assert (start.lora_rank, start.lora_alpha) == (4, 8.0)
    whole = rung(tiny, tmp_path / "whole", "dpo", **given)
    assert whole.history[0]["loss"] == pytest.approx(math.log(2), rel=1e-3)  # measured from where it starts
    assert whole.settings["start"] == start.folder and "starts_from_its_adapter" in whole.settings["preflight"]
    with pytest.raises(BudgetStopped):
        rung(tiny, tmp_path / "parts", "dpo", after(2), **given)
    rung(tiny, tmp_path / "parts", "dpo", **given)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts") != weights(tmp_path / "first")

    with pytest.raises(BadInput, match=r"another kind than this run's \(r: 4 there, 8 here"):
        rung(tiny, tmp_path / "rank", "dpo", **given, lora_rank=8)
    with pytest.raises(BadInput, match="is not the adapter this run was planned with"):
        rung(tiny, tmp_path / "sum", "dpo", **{**given, "start_sha256": "0" * 64})


def test_a_start_that_does_not_fit_is_refused(tiny, tmp_path):
    from shoestring.train.start import find_start

    with pytest.raises(BadInput, match=r"holds no adapter for .*looked for adapter_config.json"):
        find_start(str(tmp_path / "nothing"), tiny)
    rung(tiny, tmp_path / "first", "sft", num_epochs=0.2, num_evals=1)
    other = str(make_model(tmp_path / "other", hidden=64))
    with pytest.raises(BadInput, match=r"was made on .*tiny, and this rung is"):
        find_start(str(tmp_path / "first" / "adapter"), other)
    start = find_start(str(tmp_path / "first"), tiny)
    with pytest.raises(BadInput, match="28 matrices are missing, not known here or of another size"):
        rung(other, tmp_path / "out", "sft", start=start.folder, start_sha256=start.sha256)


def test_the_best_adapter_is_kept_by_what_early_stopping_looks_at(tiny, tmp_path):
    found = rung(tiny, tmp_path / "out", "dpo", stop_on="preference", num_evals=3)
    evals = [point for point in found.history if "dev_preference" in point]
    best = max(evals, key=lambda point: (point["dev_preference"], -point["dev_loss"]))
    assert found.best_step == best["step"] and found.dev_metric == best["dev_preference"]
    assert evals[0]["dev_metric"] == 0.0


# ---------------------------------------------------------------- from a file to the record


def kto_file(folder, num: int = 120) -> None:
    """Sums marked true or false; some prompts with both answers, a repeat, and one answer marked both ways."""
    rows = []
    for i in range(num):
        asked = f"What follows {i} when one counts on from there?"
        if i % 4 != 3:
            rows.append({"prompt": asked, "completion": f"{i + 1}", "label": True})
        if i % 2:
            rows.append({"prompt": asked, "completion": f"it is {i}", "label": False})
    rows += [rows[2] | {"label": True}, rows[-1], {**rows[0], "label": False}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def curated_for(folder, objective: str):
    from shoestring.config import RunConfig
    from shoestring.data.curate import curate

    config = {"name": "kto", "task": {"kind": "generate", "bar": 0.5}, "data": {"train": ["rows.jsonl"]}}
    return curate(RunConfig.model_validate({**config, "train": {"objective": objective}}), folder)


def test_undesired_answers_are_learned_from_by_kto_alone(tmp_path):
    kto_file(tmp_path)
    plain = curated_for(tmp_path, "sft")
    assert not plain.undesired and sum(d.code == "undesired_answer" for d in plain.dropped) == 62
    assert all(e.desired for e in plain.train)
    found = curated_for(tmp_path, "kto")
    assert [e.id for e in found.train] == [e.id for e in plain.train]  # nothing else changes
    assert [e.id for e in found.eval] == [e.id for e in plain.eval]
    undesired = [e for rows in found.undesired.values() for e in rows]
    assert len(undesired) == 60 and not any(e.desired for e in undesired)
    codes = [d.code for d in found.dropped if d.row["label"] is False]
    assert sorted(codes) == ["contradiction", "exact_duplicate"]
    # A prompt is on one side, and some undesired answers are held out with it.
    asked = {side: {e.user_text for e in found.all_rows(side)} for side in ("train", "dev", "eval")}
    assert not asked["train"] & asked["eval"] and not asked["train"] & asked["dev"] and not asked["dev"] & asked["eval"]
    assert all(found.undesired[side] for side in ("train", "eval"))
    counts = found.counts
    assert sum(counts[f"rows_{side}"] for side in ("train", "dev", "eval")) + counts["dropped"] == counts["rows_in"]


def test_a_file_of_marked_answers_to_a_record_that_says_what_is_preferred(tmp_path, monkeypatch, capfd):
    from shoestring.cli.main import run

    monkeypatch.chdir(tmp_path)
    kto_file(tmp_path, 80)
    (tmp_path / "run.yaml").write_text(
        "name: counting\ntask: {kind: generate, bar: 0.5, metric: exact_match}\ndata: {train: rows.jsonl}\n"
        "models: [shoestring-1m]\ndecide: {arms: []}\nevaluate: {regression: false}\n"
        "train: {objective: kto, batch_tokens: 512, num_evals: 1, learning_rate: 1e-3}\n"
    )
    assert run(["eval", "run.yaml"]) in (0, 3)
    told = capfd.readouterr()
    assert "held-out pairs, chosen answer preferred by implicit reward" in told.err
    record = json.loads((tmp_path / "runs/counting/rungs/shoestring-1m/eval.json").read_text())
    found = record["result"]["arm"]["details"]["preference"]
    assert found["objective"] == "kto" and found["num_pairs"] >= found["num_pairs_of_one_prompt"] > 0
    assert 0 <= found["reward"]["after"]["low"] <= found["reward"]["after"]["value"] <= 1
    assert "preferred by implicit reward" in (tmp_path / "runs/counting/report.html").read_text()


def test_init_says_how_pairs_and_marked_answers_are_learned_from(tmp_path, monkeypatch, capfd):
    from shoestring.cli.main import run

    monkeypatch.chdir(tmp_path)
    kto_file(tmp_path)
    assert run(["init", "rows.jsonl", "--out", "kto.yaml"]) == 0
    assert "# train: {objective: kto}  # learns from rows marked false too" in (tmp_path / "kto.yaml").read_text()
    pairs_ = [{"prompt": f"What is {i} and one?", "chosen": f"{i + 1}", "rejected": f"{i}"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs_)))
    assert run(["init", "pairs.jsonl", "--out", "dpo.yaml"]) == 0
    assert "# train: {objective: dpo, start: runs/NAME}" in (tmp_path / "dpo.yaml").read_text()


# ---------------------------------------------------------------- the bench


def test_the_bench_pools_seeds_and_runs_small():
    from bench import preference as bench

    share = {"value": 0.75, "low": 0.0, "high": 1.0}
    arm = {
        "pairs": {"num_pairs": 4, "log_prob": {"before": share, "after": {**share, "value": 1.0}}, "reward": None},
        "exact_record": share, "leaf_f1": 0.5, "num_steps": 3, "learning_rate": 1.0, "wall_s": 1.0,
    }  # fmt: skip
    found = bench.pooled([{"sft": arm}, {"sft": {**arm, "leaf_f1": 0.7}}])["sft"]
    assert found["log_prob_before"]["value"] == 0.75 and found["log_prob_after"]["value"] == 1.0
    assert found["log_prob_after"]["low"] == pytest.approx(1 / (1 + 1.96**2 / 8), rel=1e-3)  # Wilson, 8 of 8
    assert found["leaf_f1"] == [0.5, 0.7] and found["reward_after"] is None
    for row in bench.pairs(30, random.Random(0)):
        wanted, lost = (json.loads(m.content) for m in (row.answer[0], row.rejected[0]))
        assert sum(wanted[key] != lost[key] for key in wanted) == 1 and wanted.keys() == lost.keys()
    small = bench.measure("shoestring-1m", [0], 24, 16, 8, 1, ())
    assert 0 <= small["arms"]["sft"]["log_prob_after"]["value"] <= 1


def test_dev_rows_of_one_kind_cannot_be_stopped_on_by_preference(tiny):
    asked = (Message("user", "say"), Message("assistant", "yes"))
    liked, disliked = (Example(asked, (1, 2), "rows", 1, desired=flag) for flag in (True, False))
    given = settings(objective="kto", stop_on="preference")
    with pytest.raises(BadInput, match="2 dev rows hold one kind alone"):
        objective(load_tokenizer(tiny), [liked, liked], given, "dev")
    assert len(objective(load_tokenizer(tiny), [liked, disliked], given, "dev").items) == 2
