"""The run file: typed, unknown keys refused with a suggestion, every fault with file and line.

`load_run_file` returns a frozen RunConfig; `json_schema` is what editors complete from.
Derived values (rank, token limits) are not decided here: the stage that derives one records its reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from .errors import ConfigError
from .sections import CurateConfig as CurateConfig
from .sections import DataConfig as DataConfig
from .sections import EndpointConfig as EndpointConfig
from .sections import FieldsConfig as FieldsConfig
from .sections import JudgeConfig as JudgeConfig
from .sections import LadderConfig as LadderConfig
from .sections import LaunchConfig as LaunchConfig
from .sections import RetrievalConfig as RetrievalConfig
from .sections import Section
from .sections import SynthConfig as SynthConfig
from .task import METRICS_BY_KIND as METRICS_BY_KIND
from .task import TaskConfig as TaskConfig
from .task import TaskKind as TaskKind
from .task import did_you_mean
from .yaml_lines import line_of, read_mapping

ArmKind = Literal["zero_shot", "instruction", "few_shot", "nearest", "rag", "linear"]

# In an address: user and password before the host, or a query, where signatures stand.
CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@|://.*\?")
# Objectives that learn from a comparison of answers.
PREFERENCES = ("dpo", "orpo", "kto")
# Keys of the section train that other objectives than these would ignore.
OF_OBJECTIVES = {
    "dpo_beta": ("dpo",), "orpo_lambda": ("orpo",), "kto_beta": ("kto",), "stop_on": PREFERENCES,
}  # fmt: skip

# Keys of the contract that a later version will use; refused rather than silently ignored.
PLANNED_KEYS = {"serve": "serving"}


class DecideConfig(Section):
    """Baselines measured before any training."""

    arms: list[ArmKind] = Field(default=["zero_shot", "instruction", "few_shot", "nearest", "rag", "linear"])
    """Which baselines; instruction needs two candidates, rag data.documents, linear a task to classify or extract."""
    num_shots: int = Field(default=4, ge=1, le=64)
    """Examples in a few-shot or nearest prompt; fewer where the context is short."""
    instructions: list[str] = Field(default=[])
    """Further candidates for arm instruction, beside task.instruction and the one derived from the data."""
    written_instructions: int = Field(default=0, ge=0, le=16)
    """So many more candidates are asked of the model itself."""
    max_rows: int = Field(default=200, ge=20)
    """Held-out rows the prompting arms are scored on; fine-tunes are compared on these same rows."""
    endpoints: list[EndpointConfig] = Field(default=[])
    """Larger models to prompt, for comparison."""
    train_anyway: bool = False
    """Train even if a baseline meets the bar."""


class TrainConfig(Section):
    """Training values a person turned on purpose; each has a derived default with a reason."""

    objective: Literal["sft", "dpo", "orpo", "kto"] = "sft"
    """sft learns the answer; dpo prefers it to the rejected one of each pair; orpo does both; kto: answers marked."""
    passages: Literal["without", "with", "both"] = "both"
    """With data.documents: whether rungs learn and answer with passages in the prompt; both: each model both ways."""
    start: str = ""
    """Run folder or adapter folder, relative to the run file, whose adapter training goes on from (default: fresh)."""
    dpo_beta: float = Field(default=0.1, gt=0, le=10)
    """How closely dpo keeps to the model it starts from; larger is closer."""
    orpo_lambda: float = Field(default=0.1, gt=0, le=10)
    """Weight of preference beside learning the chosen answer under orpo."""
    kto_beta: float = Field(default=0.1, gt=0, le=10)
    """How closely kto keeps to the model it starts from; larger is closer."""
    stop_on: Literal["task", "preference"] | None = None
    """What early stopping looks at: the task metric, or the share of dev pairs whose chosen answer is preferred."""
    num_epochs: float | None = Field(default=None, ge=0.001, le=100)
    """Passes over the training rows."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | Literal["search"] | None = None
    """Peak learning rate; `search` tries several around the derived one on few tokens and trains with the best."""
    search_tokens: int | None = Field(default=None, ge=64)
    """Tokens that learning_rate: search may spend (default: a quarter of training's)."""
    lora_rank: int | None = Field(default=None, ge=1, le=1024)
    """Rank of the adapter matrices."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale numerator; default equals 2 x rank, with rslora 2 x the root of the default rank."""
    batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of the rows in one optimizer step, padding included."""
    micro_batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of one forward and backward pass: padding included, shared beginnings once."""
    recompute: int | None = Field(default=None, ge=0)
    """Layers that run again in backward instead of keeping what they computed; default: as few as memory allows."""
    dora: bool = False
    """Adapters learn direction and length of each weight row apart (DoRA)."""
    rslora: bool = False
    """Scale adapters by alpha over the square root of the rank (rsLoRA): high ranks then learn as fast as low ones."""
    fp8: bool = False
    """Hold the frozen base in FP8 on cards that multiply it, if the loss stays the same; not yet measured on a card."""
    seq_len: int | None = Field(default=None, ge=16)
    """Longest training row in tokens; longer ones are dropped and counted, held-out rows keep to the context alone."""
    patience: int = Field(default=2, ge=1)
    """Evaluations without a better dev score before training stops."""
    num_evals: int = Field(default=6, ge=1, le=100)
    """Evaluations on the dev rows over the whole schedule; fewer where answering takes long beside training."""
    num_dev_rows: int | None = Field(default=None, ge=1)
    """Dev rows that each evaluation answers (default: 128; fewer where answering takes long beside training)."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads."""
    num_processes: int | None = Field(default=None, ge=1, le=64)
    """Processes that train together, one a GPU (default: all GPUs of the machine; on CPU one)."""
    parallelism: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every GPU holds the base; fsdp: it lies in shards on all of them; auto: ddp where it fits."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default=[])
    """Where step metrics are also sent; each logs in by its own environment variables."""
    checkpoints: str = ""
    """A second place for checkpoints, from which another machine goes on: a folder, or s3://, gs://, az://, hf://."""
    engine_python: str = ""
    """Python of the environment that has the engine; empty: this one, for trl where it is installed."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate_or_search(cls, value: Any) -> Any:
        """One message, where a union would give one for each of its types."""
        try:
            is_rate = value is None or value == "search" or (not isinstance(value, bool) and 0 < float(value) < 1)
        except (TypeError, ValueError):
            is_rate = False
        if not is_rate:
            raise ValueError("give a number above 0 and below 1, or search")
        return value

    @model_validator(mode="after")
    def _no_credentials(self) -> TrainConfig:
        if CREDENTIALS.search(self.checkpoints):  # and the message does not repeat them
            raise ValueError(
                "train.checkpoints holds a user, password or key, which would be stored with the run; give the plain "
                "address, and the credentials in the environment variables of the driver (such as AWS_ACCESS_KEY_ID)"
            )
        return self

    @model_validator(mode="after")
    def _budget_is_of_a_search(self) -> TrainConfig:
        if self.search_tokens is not None and self.learning_rate != "search":
            raise ValueError("search_tokens is what learning_rate: search may spend; set that, or leave it out")
        return self

    @model_validator(mode="after")
    def _of_the_objective(self) -> TrainConfig:
        for key, objectives in OF_OBJECTIVES.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value not in (default, "task") and self.objective not in objectives:
                raise ValueError(
                    f"{key} = {value} is of objective {' or '.join(objectives)}, and this is {self.objective}; "
                    "leave it out, or change train.objective"
                )
        return self


class EvaluateConfig(Section):
    """What is measured of a trained rung besides the task."""

    regression: bool = True
    """Also read general texts and answer general questions before and after, and say what was forgotten."""
    give_up_early: bool = True
    """Stop asking a trained rung once the bar is out of its reach; a good one is lost so once in a hundred at most."""


class MarketConfig(Section):
    """What a machine hour costs."""

    price_usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of the machine the run is on; default: the dated table's row for the device."""
    device: str | None = None
    """Row of the price table to plan for, such as H100-SXM; default: the present device."""
    interruptions_per_hour: float | list[float] | None = None
    """How often the machine is taken away, or low, expected and high, narrowed by launches; checkpoints follow."""

    @field_validator("interruptions_per_hour")
    @classmethod
    def _are_rates(cls, given: float | list[float] | None) -> float | list[float] | None:
        for rate in given if isinstance(given, list) else [given or 0.0]:
            if not 0 <= rate <= 3600:
                raise ValueError(f"{rate:g} is not between 0 and 3600 an hour")
        if isinstance(given, list) and not (len(given) == 3 and 0 < given[0] <= given[1] <= given[2]):
            raise ValueError("give one number, or three above 0 in order: low, expected, high")
        return given


class TrafficConfig(Section):
    """What the model will serve: `shoestring plan` then says the total cost, and from which volume training pays."""

    requests_per_month: float = Field(ge=0.01, le=1e12)
    """Requests in a month."""
    prompt_tokens: int = Field(ge=1, le=100_000_000)
    """Tokens of a usual request, instruction included."""
    completion_tokens: int = Field(ge=1, le=100_000_000)
    """Tokens of a usual answer."""
    months: float = Field(default=12, gt=0, le=120)
    """How long it serves."""
    num_adapters: int = Field(default=1, ge=1, le=1_000_000)
    """Fine-tunes of one base, each with this traffic: how many GPUs they need together, and apart."""


class RunConfig(Section):
    """One run: the bar and the budget are the two dials, the rest follows or is turned on purpose."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Names the run folder runs/NAME."""
    task: TaskConfig
    data: DataConfig
    models: list[str] = Field(default=["embedded"], min_length=1)
    """Ladder rungs: hub names, folders (relative to the run file), or the family name `embedded`."""
    method: Literal["auto", "lora", "qlora", "full"] = "auto"
    """auto: LoRA where the 16-bit base fits, else QLoRA; full trains every weight, at 16 bytes a parameter."""
    engine: Literal["shoestring", "trl", "unsloth", "axolotl"] = "shoestring"
    """Whose trainer; the others run in a process of their own, on the rows, tokens and settings of this run."""
    budget_usd: float = Field(default=10.0, ge=0)
    """Hard stop: no step is begun that would pass it."""
    deadline_h: float | None = Field(default=None, gt=0)
    """Rungs predicted to take longer are left out."""
    seed: int = Field(default=0, ge=0)
    """Seed of splits, order and initialisation."""
    curate: CurateConfig = CurateConfig()
    decide: DecideConfig = DecideConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ladder: LadderConfig = LadderConfig()
    market: MarketConfig = MarketConfig()
    traffic: TrafficConfig | None = None
    synth: SynthConfig = SynthConfig()
    launch: LaunchConfig = LaunchConfig()
    judge: JudgeConfig | None = Field(default=None, validate_default=True)

    @field_validator("judge", mode="after")
    @classmethod
    def _of_open_text(cls, judge: JudgeConfig | None, info: ValidationInfo) -> JudgeConfig | None:
        task = info.data.get("task")
        if task and task.metric == "judge" and judge is None:
            raise ValueError("task.metric: judge needs this section, with endpoints ('shoestring explain judge')")
        if task and judge and "judge" not in METRICS_BY_KIND[task.kind]:
            raise ValueError(f"a judge is for open text, and kind {task.kind} is scored exactly; leave it out")
        return judge

    @field_validator("train", mode="after")
    @classmethod
    def _switches_agree(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        """What belongs to adapters, or to a frozen base, does not go with training every weight."""
        adapters = [key for key in ("dora", "rslora", "lora_rank", "lora_alpha", "start", "fp8") if getattr(train, key)]
        if info.data.get("method") == "full" and adapters:
            why = "holds a frozen base" if adapters == ["fp8"] else "is of adapters"
            raise ValueError(
                f"{', '.join(adapters)} {why}, and method: full trains every weight without one; "
                "leave it out, or set method: lora"
            )
        if train.parallelism == "fsdp" and (info.data.get("method") == "full" or train.dora):
            what = "dora" if train.dora else "method: full"
            raise ValueError(f"fsdp holds a frozen base in shards, and {what} needs it whole; set parallelism: ddp")
        if train.dora and train.fp8:
            raise ValueError("dora needs the rows of the base as they are, and fp8 rounds them; set one of the two")
        return train

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("models"), str):
            return {**raw, "models": [raw["models"]]}
        return raw


def json_schema() -> dict[str, Any]:
    """JSON Schema of the run file, for editors."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def load_run_file(path: str | Path) -> RunConfig:
    """Read and check a run file.

    Raises: ConfigError naming file, line, value and remedy; all faults at once.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the run file (YAML), such as {path / 'run.yaml'}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: no such run file{near}; 'shoestring init DATA_FILE' writes one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a run file is YAML text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_run_file(text, str(path))


def parse_run_file(text: str, name: str = "run file") -> RunConfig:
    """Check the text of a run file. Raises: ConfigError: file and line, or the key alone where name is empty."""
    node, raw = read_mapping(text, name)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault, node, name) for fault in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _section_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys allowed where the unknown key at location stands."""
    model: Any = RunConfig
    for step in location[:-1]:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        model = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
    return list(model.model_fields)


def _explain(fault: Any, node: Any, name: str) -> str:
    location = tuple(fault["loc"])
    where = f"{name}:{line_of(node, location)}: " if name else ""
    dotted = ".".join(str(step) for step in location)
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        key = str(location[-1])
        if len(location) == 1 and key in PLANNED_KEYS:
            return f"{where}{key!r} ({PLANNED_KEYS[key]}) is not used by this version yet; remove the key"
        allowed = _section_keys(location)
        guess = did_you_mean(key, allowed) or f"; allowed here: {', '.join(allowed)}"
        return f"{where}unknown key {dotted!r}{guess}"
    if fault["type"] == "missing":
        return f"{where}{dotted!r} is missing; 'shoestring explain {dotted}' says what it is"
    message = re.sub(r"^(Value error, |Input )", "", fault["msg"])
    shown = "" if isinstance(value, (dict, list)) else f" = {value!r}"
    return f"{where}{dotted}{shown}: {message}"
