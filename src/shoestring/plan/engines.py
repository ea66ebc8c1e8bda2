"""The trainers a run can be given to, and which keys of the run file each of them honours."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RunConfig, TrainConfig
from ..errors import BadInput, ConfigError

OURS = "shoestring"


@dataclass(frozen=True, slots=True)
class Engine:
    """packages: what must be installed in its environment, the first one made by `install`."""

    name: str
    packages: tuple[str, ...]
    install: str
    objectives: tuple[str, ...]
    needs_cuda: bool = False
    lacks: tuple[str, ...] = ()  # of HONOURED


_COMMON = ("torch", "transformers", "peft", "accelerate", "datasets")
ENGINES = {
    engine.name: engine
    for engine in (
        Engine("trl", ("trl", *_COMMON), "pip install 'trl>=1.0' peft bitsandbytes", ("sft", "dpo")),
        Engine(
            "unsloth", ("unsloth", "trl", *_COMMON), "pip install unsloth", ("sft",), needs_cuda=True, lacks=("dora",)
        ),
        Engine("axolotl", ("axolotl", "trl", *_COMMON), "pip install axolotl", ("sft",)),
    )
}
# Keys of train: that every other engine honours. recompute: all layers or none.
HONOURED = {
    *("objective", "dpo_beta", "num_epochs", "learning_rate", "lora_rank", "lora_alpha", "search_tokens"),
    *("batch_tokens", "micro_batch_tokens", "recompute", "seq_len", "num_evals", "num_threads", "engine_python"),
    *("trackers", "num_dev_rows", "dora", "rslora"),
}
METHODS = ("auto", "lora", "qlora")
UNMET = {
    "patience": "it runs the whole schedule, and the best of its checkpoints on the dev rows is kept",
    "fp8": "it holds the base in 16 bits or NF4",
}


def unhonoured(config: RunConfig, name: str) -> list[str]:
    """What the run file asks for that the engine cannot do: a line a key."""
    engine, train = ENGINES[name], config.train
    wrong = []
    if train.objective not in engine.objectives:
        known = " or ".join(engine.objectives)
        wrong.append(f"train.objective: {train.objective} is not among what it is given here ({known})")
    if config.method not in METHODS:
        wrong.append(f"method: {config.method} is not among what it is given here ({', '.join(METHODS)})")
    for key in sorted(train.model_fields_set - (HONOURED - set(engine.lacks))):
        if getattr(train, key) != TrainConfig.model_fields[key].get_default(call_default_factory=True):
            wrong.append(f"train.{key}: {UNMET.get(key, 'that is of the trainer of Shoestring alone')}")
    return wrong


def require_honoured(config: RunConfig) -> None:
    """Refuse, before anything is spent, what the engine of the run file cannot do.

    Raises: ConfigError naming each key.
    """
    if config.engine == OURS:
        return
    if wrong := unhonoured(config, config.engine):
        told = "\n".join(f"  {words}" for words in wrong)
        raise ConfigError(
            f"engine: {config.engine} cannot honour this run file; take these out, or choose engine: {OURS}\n{told}"
        )
    if not config.train.engine_python and config.engine != "trl":
        needed = environment_line(ENGINES[config.engine])
        raise ConfigError(f"engine: {config.engine} runs in an environment of its own: {needed}")


def environment_line(engine: Engine) -> str:
    """How to make the environment and name it."""
    return f"python3 -m venv DIR && DIR/bin/{engine.install}, then train.engine_python: DIR/bin/python in the run file"


def require_device(name: str, device_kind: str, device_name: str) -> None:
    """Raises: BadInput where the engine does not run on this kind of device."""
    if name != OURS and ENGINES[name].needs_cuda and device_kind != "cuda":
        raise BadInput(f"engine: {name} needs a CUDA GPU, and this machine is {device_name}; choose engine: {OURS}")
