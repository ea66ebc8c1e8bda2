"""train/engines: other trainers behind a process boundary, on the rows and settings of the run."""

import functools
import json
import os
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from shoestring.config import parse_run_file
from shoestring.errors import BadInput, BudgetStopped, ConfigError, Interrupted, MissingDependency, TrainingError
from shoestring.plan.engines import require_device, require_honoured
from shoestring.records import Example, Message
from shoestring.train.adapter import build_adapter
from shoestring.train.base import load_tokenizer
from shoestring.train.engines import rung, worker
from shoestring.train.engines.job import Passes, row_of, terms_of, write_job
from shoestring.train.engines.process import child, interpreter
from shoestring.train.engines.rung import train_with_engine
from shoestring.train.loop import save_trained
from shoestring.train.objective import encode_item
from shoestring.train.tokens import Encoded
from tests.test_train_trainer import HALF, additions, settings
from tests.tiny import make_model

STAND_IN = Path(__file__).with_name("stand_in_engine.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """A folder with an adapter of the tiny model that changes something."""
    return make_adapter(tiny, tmp_path_factory.mktemp("adapter"))


def make_adapter(tiny, folder):
    tuned = build_adapter(tiny, settings(), HALF)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_trained(tuned, folder)
    return folder


@pytest.fixture
def stand_in(tiny, adapter, tmp_path, monkeypatch):
    """Trains with the stand-in process in tmp_path/rung; trouble: what goes wrong."""

    def run(
        trouble="",
        stop=None,
        metric=lambda model, tokenizer: 0.5,
        rename=None,
        dev=8,
        engine="trl",
        rows=additions,
        **changes,
    ):
        monkeypatch.setenv("STAND_IN_TROUBLE", trouble)
        monkeypatch.setattr(rung, "interpreter", lambda engine, python: sys.executable)  # that of the stand-in
        monkeypatch.setattr(rung, "require_device", lambda *asked: None)
        folder = tmp_path / "rung" / "engine"
        folder.mkdir(parents=True, exist_ok=True)
        weights = load_file(str(adapter / "adapter_model.safetensors"))
        save_file({(rename or str)(name): w for name, w in weights.items()}, str(folder / "weights.safetensors"))
        (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
        return train_with_engine(
            engine_python=sys.executable,
            model=tiny,
            train=rows(40),
            dev=rows(dev, 500),
            out_dir=tmp_path / "rung",
            settings=settings(engine=engine, num_evals=2, **changes),
            device=HALF,
            dev_metric=metric,
            start=functools.partial(child, worker=STAND_IN),
            **({"should_stop": stop} if stop else {}),
        )

    run.folder = tmp_path / "rung"
    return run


def pairs(num_rows, first=0):
    return [
        Example((Message("user", f"say {i}"), Message("assistant", f"yes {i}")), (1, 2), "pairs", i,
                rejected=(Message("assistant", "no"),)) for i in range(first, first + num_rows)
    ]  # fmt: skip


def lines_of(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- what an engine is given


def test_a_row_is_given_as_the_ids_and_labels_that_preflight_checked():
    row = Encoded([7, 8, 9, 1], 2)
    assert row_of((row,)) == {"input_ids": [7, 8, 9, 1], "labels": [-100, -100, 9, 1]}
    pair = (row, Encoded([7, 8, 5, 6, 1], 2))
    assert row_of(pair) == {"prompt_ids": [7, 8], "chosen_ids": [9, 1], "rejected_ids": [5, 6, 1]}


def test_a_prompt_of_no_token_teaches_nothing_at_its_first():
    assert row_of((Encoded([7, 8], 0),))["labels"] == [-100, 8]


def test_tokens_become_rows_a_step():
    """40 rows of 10 tokens, 80 tokens a step: 8 rows; passes of 30 tokens: 3 rows, so 3 passes, 9 rows a step."""
    items = [(Encoded(list(range(10)), 4),)] * 40
    passes = Passes.of(items, settings(batch_tokens=80, micro_batch_tokens=30, num_epochs=2))
    assert (passes.rows_per_pass, passes.grad_accum_steps) == (3, 3)
    unequal = Passes.of(items, settings(batch_tokens=110, micro_batch_tokens=100, num_epochs=1))
    assert (unequal.rows_per_pass, unequal.grad_accum_steps) == (6, 2)  # 12 rows for 11, not 20
    assert passes.num_steps == 10  # 14 passes an epoch, the last step of an epoch smaller


def test_rows_in_another_order_are_the_same_rows_and_other_labels_are_not():
    rows = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4], "labels": [-100, 4]}]
    assert worker.rows_print(rows) == worker.rows_print(rows[::-1])
    assert worker.rows_print(rows) != worker.rows_print([rows[0], {**rows[1], "labels": [3, 4]}])


# ---------------------------------------------------------------- the process contract, with a stand-in


def test_a_rung_trained_elsewhere_leaves_the_records_of_one_trained_here(stand_in):
    scores = iter([0.25, 0.75])
    result = stand_in(metric=lambda model, tokenizer: next(scores))
    assert result.num_steps == len(lines_of(stand_in.folder)) == lines_of(stand_in.folder)[-1]["step"]
    assert result.best_step == result.num_steps and result.dev_metric == 0.75
    assert [row["step"] for row in result.history if "dev_metric" in row] == [result.num_steps // 2, result.num_steps]
    assert result.num_train_tokens == 10 * result.num_steps
    assert result.settings["engine"] == "trl" and result.settings["engine_versions"] == {"stand-in": "1"}
    origin = json.loads((stand_in.folder / "adapter" / "shoestring.json").read_text())
    assert origin["words"] == "LoRA, trained by trl (version unknown)"
    saved = load_file(str(stand_in.folder / "adapter" / "adapter_model.safetensors"))
    given = load_file(str(stand_in.folder / "engine" / "weights.safetensors"))
    assert saved.keys() == given.keys() and all(torch.equal(saved[k], given[k].float()) for k in saved)


def test_pairs_are_scored_on_dev_against_the_bare_base(stand_in):
    result = stand_in(rows=pairs, objective="dpo", learning_rate=1e-3)
    dev_losses = [row["dev_loss"] for row in result.history if "dev_loss" in row]
    assert len(dev_losses) == 2 and dev_losses[0] == dev_losses[1] != pytest.approx(0.6931, abs=1e-4)


def test_pairs_are_kept_by_preference_where_the_settings_say_so(stand_in):
    rising = iter([0.1, 0.9])
    result = stand_in(
        rows=pairs,
        objective="dpo",
        learning_rate=1e-3,
        stop_on="preference",
        metric=lambda model, tokenizer: next(rising),
    )
    shares = [row["dev_preference"] for row in result.history if "dev_preference" in row]
    assert shares[0] == shares[1] == result.dev_metric  # the stand-in saves the same adapter twice
    assert result.best_step == result.num_steps // 2


@pytest.mark.parametrize("engine", ["unsloth", "axolotl"])
def test_the_other_engines_keep_the_same_contract(stand_in, engine):
    result = stand_in(engine=engine)
    job = json.loads((stand_in.folder / "engine" / "job.json").read_text())
    assert job["engine"] == result.settings["engine"] == engine and engine in job["packages"]
    assert len(Path(job["rows"]).read_text().splitlines()) == 40
    if engine == "axolotl":
        config = yaml.safe_load(Path(job["config"]).read_text())
        assert config["plugins"] == ["shoestring_worker.Plugin"] and config["max_steps"] == job["max_steps"]


def test_the_best_checkpoint_on_dev_is_kept(stand_in):
    scores = iter([0.75, 0.25])
    result = stand_in(metric=lambda model, tokenizer: next(scores))
    assert result.best_step == result.num_steps // 2 and result.dev_metric == 0.75


def test_a_second_call_trains_nothing_more(stand_in):
    first = stand_in()
    again = stand_in("crash")
    assert again.num_steps == first.num_steps and again.settings["adapter_sha256"] == first.settings["adapter_sha256"]


def test_adapters_that_are_lost_or_have_no_score_are_told(stand_in):
    with pytest.raises(TrainingError, match="no dev score is a number; delete"):
        stand_in(metric=lambda model, tokenizer: float("nan"))
    for folder in (stand_in.folder / "engine").glob("step-*"):
        shutil.rmtree(folder)
    with pytest.raises(TrainingError, match="none of the adapters it saved is left"):
        stand_in()


def test_an_adapter_on_a_wrong_prefix_is_refused(stand_in):
    with pytest.raises(TrainingError, match=r"adapter_fits_the_base: 56 matrices .* changes nothing"):
        stand_in(rename=lambda name: name.replace("base_model.model.model", "base_model.model.language_model"))


def test_a_crash_is_told_with_its_last_words_and_the_log(stand_in):
    with pytest.raises(TrainingError, match=r"(?s)ended with status 1.*illegal memory access.*log\.txt"):
        stand_in("crash")


def test_a_loss_that_is_not_finite_stops_it(stand_in):
    with pytest.raises(TrainingError, match="step 2: loss nan: training diverged"):
        stand_in("diverge")


def test_the_budget_stops_it_with_a_checkpoint_and_the_next_call_goes_on(stand_in):
    with pytest.raises(BudgetStopped, match="spent"):
        stand_in("waits", stop=lambda wall_s: BudgetStopped("spent"))
    stopped_at = lines_of(stand_in.folder)[-1]["step"]
    assert [path.name for path in (stand_in.folder / "checkpoints").iterdir()] == [f"checkpoint-{stopped_at}"]
    result = stand_in()
    assert stopped_at < result.num_steps
    assert [line["step"] for line in lines_of(stand_in.folder)] == list(range(1, result.num_steps + 1))


def test_a_signal_is_handed_on_and_the_run_can_be_continued(stand_in):
    def at_once(wall_s):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        stand_in("waits", stop=at_once)
    assert stand_in().num_steps > 2


def test_rows_are_checked_before_a_process_starts(stand_in, tiny):
    with pytest.raises(TrainingError, match="learning_rate_is_sane"):
        stand_in(learning_rate=0.9)
    assert not (stand_in.folder / "engine" / "log.txt").exists()


def test_a_worker_whose_parent_is_gone_ends(tmp_path):
    ours, theirs = os.pipe()
    pipe = worker.Pipe(theirs)
    os.close(ours)
    with pytest.raises(SystemExit, match="is gone"):
        pipe.tell("step", step=1)
    os.close(theirs)


# ---------------------------------------------------------------- refusals


def run_file(text):
    return parse_run_file(f"name: x\ntask: {{kind: chat, bar: 0.5}}\ndata: {{train: a.jsonl}}\n{text}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engine: trl\ntrain: {fp8: true, patience: 1}", r"(?s)train\.fp8: .*train\.patience: it runs the whole"),
        ("engine: unsloth\ntrain: {objective: dpo, engine_python: p}", "train.objective: dpo"),
        ("engine: unsloth\ntrain: {dora: true, engine_python: p}", "train.dora"),
        ("engine: trl\nmethod: full", "method: full"),
        ("engine: axolotl", r"pip install axolotl, then train\.engine_python"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_anything_is_spent(text, words):
    with pytest.raises(ConfigError, match=words):
        require_honoured(run_file(text))


def test_what_it_can_do_is_not_refused():
    require_honoured(run_file("engine: trl\ntrain: {objective: dpo, lora_rank: 4, recompute: 1, fp8: false}"))
    require_honoured(run_file("train: {fp8: true}"))


def test_every_key_of_train_is_honoured_or_known():
    from shoestring.config import TrainConfig
    from shoestring.plan.engines import HONOURED

    assert set(TrainConfig.model_fields) >= HONOURED


def test_unsloth_wants_a_gpu():
    with pytest.raises(BadInput, match="needs a CUDA GPU"):
        require_device("unsloth", "cpu", "this CPU")


def test_a_missing_package_is_told_with_the_lines_that_install_it():
    with pytest.raises(MissingDependency, match=r"needs axolotl, not installed .*DIR/bin/pip install axolotl"):
        interpreter("axolotl", sys.executable)
    with pytest.raises(BadInput, match="is no program"):
        interpreter("unsloth", "/no/such/python")
    with pytest.raises(BadInput, match="does not run Python"):
        interpreter("unsloth", "/bin/false")


# ---------------------------------------------------------------- TRL itself


def test_trl_trains_a_rung_in_a_process_of_its_own(tiny, tmp_path):
    pytest.importorskip("trl")
    result = train_with_engine(
        engine_python="", model=tiny, train=additions(40), dev=additions(4, 500), out_dir=tmp_path,
        settings=settings(engine="trl", num_evals=2), device=HALF, dev_metric=lambda model, tokenizer: 0.0,
    )  # fmt: skip
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, result.num_steps + 1))
    assert result.final_loss < lines[0]["loss"] and result.num_computed_tokens >= result.num_train_tokens > 0
    assert result.settings["engine_versions"]["trl"] and result.settings["adapter_effect_logits"] > 0


class Stop:
    def __init__(self, asked=False):
        self.asked = asked


class Heard(list):
    def tell(self, event, **facts):
        self.append({"event": event, **facts})

    def of(self, kind):
        return [event for event in self if event["event"] == kind]


def job_of(tiny, folder, examples, resume=None, **changes):
    tokenizer, asked = load_tokenizer(tiny), settings(engine="trl", **changes)
    items = [encode_item(tokenizer, example, asked.objective) for example in examples]
    return write_job(
        folder, engine="trl", items=items, lora_targets=["q_proj", "down_proj"], save_steps=[1],
        terms=terms_of(model=tiny, items=items, settings=asked, device=HALF, pad_token=tokenizer.pad_token),
        checkpoints=folder / "checkpoints", resume=resume,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TRL's own
def test_trl_goes_on_from_its_own_checkpoint(tiny, tmp_path):
    """In this process: stopped at once it saves step 1, and the continued run ends where an uninterrupted one does."""
    pytest.importorskip("trl")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    heard, again = Heard(), Heard()
    worker.train_trl(job_of(tiny, whole, additions(24), batch_tokens=256), heard, Stop())
    assert worker.train_trl(job_of(tiny, parts, additions(24), batch_tokens=256), again, Stop(True)).was_stopped
    assert [event["step"] for event in again.of("saved")] == [1]
    rest = job_of(tiny, parts, additions(24), batch_tokens=256, resume=parts / "checkpoints" / "checkpoint-1")
    assert not worker.train_trl(rest, again, Stop()).was_stopped
    assert len(heard.of("step")) > 2
    assert [(e["step"], e["loss"]) for e in again.of("step")] == [(e["step"], e["loss"]) for e in heard.of("step")]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TRL's own
def test_trl_prefers_on_the_ids_it_is_given(tiny, tmp_path):
    """In this process: DPO begins at ln 2, on the pairs as they were tokenised here."""
    pytest.importorskip("trl")
    heard = Heard()
    job = job_of(tiny, tmp_path, pairs(16), objective="dpo", num_epochs=1, batch_tokens=1024, micro_batch_tokens=512)
    worker.train_trl(job, heard, Stop())
    steps = heard.of("step")
    assert [step["step"] for step in steps] == list(range(1, job["max_steps"] + 1))
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=5e-3)
    assert heard.of("rows") == [{"event": "rows", "num_rows": 16}]


@pytest.mark.filterwarnings("ignore")  # TRL's own, and pinned memory without a GPU
def test_what_unsloth_is_asked_for(tiny, tmp_path, monkeypatch):
    """Its worker, with a module of the documented calls in place of unsloth, which needs a GPU; TRL is real."""
    pytest.importorskip("trl")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name, max_seq_length, dtype, load_in_4bit, use_exact_model_name):
            asked.update(load_in_4bit=load_in_4bit, max_seq_length=max_seq_length)
            model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype)
            return model, AutoTokenizer.from_pretrained(model_name)

        @staticmethod
        def get_peft_model(
            model,
            r,
            lora_alpha,
            lora_dropout,
            bias,
            target_modules,
            random_state,
            use_rslora,
            use_gradient_checkpointing,
        ):
            asked.update(use_gradient_checkpointing=use_gradient_checkpointing)
            return get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules))

    module = types.ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    heard, job = Heard(), {**job_of(tiny, tmp_path, additions(16), num_epochs=1), "dtype": "float32"}
    worker.train_unsloth(job, heard, Stop())
    assert asked == {"load_in_4bit": False, "max_seq_length": job["seq_len"], "use_gradient_checkpointing": False}
    assert len(heard.of("step")) == job["max_steps"] and heard.of("saved")[-1]["step"] == job["max_steps"]


def test_an_engine_that_would_learn_other_tokens_is_stopped():
    """A collator that lets the prompt bear loss."""

    class Trainer:
        train_dataset = ({"input_ids": [1, 2, 3], "labels": [-100, -100, 3]},)

        @staticmethod
        def data_collator(rows):
            return {"labels": torch.tensor([row["input_ids"] for row in rows])}

    job = {"objective": "sft", "rows_sha256": worker.rows_print(Trainer.train_dataset)}
    with pytest.raises(worker.WrongRows, match="which tokens bear loss"):
        worker.attach(Trainer(), job, None, None)
    with pytest.raises(worker.WrongRows, match="token for token"):
        worker.attach(Trainer(), {**job, "rows_sha256": ""}, None, None)


def test_a_worker_that_dies_is_heard_of_though_what_it_started_holds_the_pipe(tmp_path):
    fifo, program = tmp_path / "fifo", tmp_path / "worker.py"
    os.mkfifo(fifo)
    program.write_text(
        "import os, sys, time\n"
        "if not os.fork():\n"
        f"    with open({str(fifo)!r}, 'w') as file:\n"
        "        time.sleep(60)\n"
        "        file.write('still here')\n"
        "    os._exit(0)\n"
        'os.write(int(sys.argv[3]), b\'{"event": "started"}\\n\')\n'
        "os.kill(os.getpid(), 9)\n"
    )
    with child(sys.executable, tmp_path, {}, program) as running:
        file = fifo.open()
        assert [event for event in running.events() if event is not None] == [{"event": "started"}]
        with pytest.raises(TrainingError, match="ended by SIGKILL"):
            running.finish()
    with file:
        assert file.read() == ""  # until nobody holds its other end
