"""train/tracking: steps arrive once in each tracker, also over a session that was lost."""

import functools
import json
from collections import Counter

import pytest

from shoestring.errors import BadInput, MissingDependency
from shoestring.train import tracking
from shoestring.train.engines.process import child
from shoestring.train.tracking import Trackers, Tracking, require_trackers
from shoestring.train.trainer import train_rung
from tests.test_train_trainer import HALF, additions, settings
from tests.tiny import make_model

LOST_AT = 5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def tracked(tiny, tmp_path, monkeypatch):
    """Trains to tmp_path/rung, reporting to one tracker: a session lost at step LOST_AT, then another to the end."""
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(key, "shoestring")  # else set for good

    def run(name, **environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        train = functools.partial(
            train_rung, model=tiny, train=additions(80), dev=additions(4, 500), out_dir=tmp_path / "rung",
            settings=settings(num_epochs=3, batch_tokens=768, num_evals=3, patience=9), device=HALF,
            dev_metric=lambda model, tokenizer: 0.25, tracking=Tracking((name,), "tickets/tiny"),
        )  # fmt: skip

        def power_cut(label, done, total):
            if label.startswith("train") and done == LOST_AT:
                raise RuntimeError("the power is gone")

        with pytest.raises(RuntimeError, match="power"):
            train(progress=power_cut)
        saved = [int(p.name.split("-")[1]) for p in (tmp_path / "rung" / "checkpoints").iterdir()]
        assert 0 < max(saved) < LOST_AT  # so that steps are done again
        result = train()
        return [json.loads(line) for line in (tmp_path / "rung" / "steps.jsonl").read_text().splitlines()], result

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_each_step_once(tracked, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines, _ = tracked("tensorboard")
    (folder,) = (tmp_path / "rung" / "tensorboard").iterdir()  # one run for both sessions
    found = EventAccumulator(str(folder)).Reload()
    for tag, key in [
        ("train/loss", "loss"),
        ("train/learning_rate", "learning_rate"),
        ("train/grad_norm", "grad_norm"),
    ]:
        scalars = found.Scalars(tag)
        assert [s.step for s in scalars] == [line["step"] for line in lines]
        assert [s.value for s in scalars] == pytest.approx([line[key] for line in lines], rel=1e-5)
    assert [s.step for s in found.Scalars("eval/dev_metric")] == [x["step"] for x in lines if "dev_metric" in x]
    assert "train/tokens_per_s" in found.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_gets_each_step_once(tracked, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    lines, _ = tracked("mlflow", MLFLOW_TRACKING_URI=uri)
    mlflow.flush_async_logging() if hasattr(mlflow, "flush_async_logging") else None
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("shoestring").experiment_id])
    assert run.info.run_name == "tickets/tiny" and run.data.params["lora_rank"] == "4"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(m.step for m in history) == [line["step"] for line in lines]


@pytest.mark.filterwarnings("ignore")  # Trackio's own
def test_trackio_gets_each_step_once(tracked, tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at import
    pytest.importorskip("trackio")
    lines, _ = tracked("trackio")
    database = next((tmp_path / "trackio").glob("*.db"))
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics").fetchall()
    told = [(name, json.loads(metrics)) for name, metrics in rows]
    assert len({name for name, _ in told}) == 1 and told[0][0].startswith("tickets/tiny ")
    steps = Counter(m["train/global_step"] for _, m in told if "train/loss" in m)
    assert steps == Counter(line["step"] for line in lines)


@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_continues_the_same_run_offline(tracked, tmp_path):
    pytest.importorskip("wandb")
    tracked("wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    folders = [p.name for p in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and len({name.rpartition("-")[2] for name in folders}) == 1


def test_a_tracker_that_is_missing_is_told_before_training():
    with pytest.raises(MissingDependency, match="pip install no-such-tracker"):
        require_trackers(["no-such-tracker"])


def test_a_tracker_that_does_not_start_is_told_and_one_that_breaks_is_given_up(tmp_path, monkeypatch):
    def refuses(*arguments):
        raise OSError("no API key\nconfigured")

    class Breaks:
        def on_log(self, *arguments, **more):
            raise ConnectionError("https://me:hidden-word@server is gone")

    said = []
    trackers = Trackers(Tracking(("wandb",), "x"), tmp_path, settings(), said.append)
    monkeypatch.setitem(tracking.START, "wandb", refuses)
    with pytest.raises(BadInput, match=r"wandb does not start \(OSError: no API key\); run `wandb login`"):
        trackers.begin({}, 0)
    monkeypatch.setitem(tracking.START, "wandb", lambda *arguments: Breaks())
    ids = {}
    with trackers:
        trackers.begin(ids, 0)
        trackers.log({"step": 1, "loss": 1.0})
        trackers.log({"step": 2, "loss": 1.0})
    assert len(said) == 1 and "https://***@server is gone" in said[0] and len(ids["wandb"]) == 16


def test_trackers_are_off_by_default(tmp_path):
    with Trackers(Tracking(), tmp_path, settings()) as trackers:
        trackers.begin({}, 0)
        trackers.log({"step": 1, "loss": 1.0})
    assert not trackers.running and not list(tmp_path.iterdir())


def test_steps_of_another_trainer_are_reported_too(tmp_path, monkeypatch, tiny):
    from tests import test_engines

    told = []

    class Hears:
        def on_log(self, arguments, state, control, logs):
            told.append((state.global_step, logs["loss"]))

        def on_train_end(self, *arguments):
            told.append("end")

    monkeypatch.setitem(tracking.START, "wandb", lambda *arguments: Hears())
    adapter = tmp_path / "made"
    test_engines.make_adapter(tiny, adapter)
    engine = tmp_path / "rung" / "engine"
    engine.mkdir(parents=True)
    (engine / "weights.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    (engine / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    result = test_engines.train_with_engine(
        engine_python="", model=tiny, train=additions(40), dev=[], out_dir=tmp_path / "rung",
        settings=settings(engine="trl"), device=HALF, dev_metric=lambda model, tokenizer: 0.0,
        tracking=Tracking(("wandb",), "x"), start=functools.partial(child, worker=test_engines.STAND_IN),
    )  # fmt: skip
    assert told == [*((step, 1.0 / step) for step in range(1, result.num_steps + 1)), "end"]
