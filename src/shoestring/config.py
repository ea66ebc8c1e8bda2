"""The run file: typed, unknown keys refused with a suggestion, every fault with file and line.

`load_run_file` returns a frozen RunConfig; `json_schema` is what editors complete from.
Derived values (rank, token limits) are not decided here: the stage that derives one records its reason.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from .errors import ConfigError
from .yaml_lines import line_of, read_mapping

TaskKind = Literal["classify", "extract", "generate", "sql", "math", "chat"]

# First of each is the default metric of the kind.
METRICS_BY_KIND: dict[str, tuple[str, ...]] = {
    "classify": ("accuracy", "macro_f1"),
    "extract": ("leaf_f1", "exact_record"),
    "generate": ("chrf", "rouge_l", "exact_match"),
    "sql": ("exact_match", "chrf"),
    "math": ("final_number", "exact_match"),
    "chat": ("chrf", "rouge_l"),
}

# Keys of the contract that a later version will use; refused rather than silently ignored.
PLANNED_KEYS = {"judge": "an LLM judge", "serve": "serving"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and no as booleans, and Python takes those for 1 and 0."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            if {int, float} & {annotation, *get_args(annotation)}:
                raise ValueError("yes, no, true and false are no number; give a number")
        return value


class TaskConfig(_Section):
    """What is to be done, how it is scored, and how good is good enough."""

    kind: TaskKind
    """classify, extract (text to JSON), generate, sql, math or chat."""
    metric: str = ""
    """Primary metric, 0 to 1; empty: the default of the kind."""
    bar: float = Field(ge=0.0, le=1.0)
    """Quality bar on the metric; met when the lower end of its 95 % interval reaches it."""
    instruction: str = ""
    """What the model is told in prompting arms; empty: derived from the data."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=32768)
    """Longest answer generated; empty: from the longest training answer."""

    @model_validator(mode="after")
    def _metric_of_kind(self) -> TaskConfig:
        allowed = METRICS_BY_KIND[self.kind]
        if not self.metric:
            object.__setattr__(self, "metric", allowed[0])
        elif self.metric not in allowed:
            raise ValueError(
                f"metric {self.metric!r} does not score task kind {self.kind!r}; "
                f"choose one of: {', '.join(allowed)}{_did_you_mean(self.metric, allowed)}"
            )
        return self


class FieldsConfig(_Section):
    """Column or key names, only where detection cannot tell."""

    prompt: str | None = None
    """Key that holds the input text."""
    completion: str | None = None
    """Key that holds the answer."""
    system: str | None = None
    """Key that holds a system prompt."""
    messages: str | None = None
    """Key that holds a list of messages."""


class DataConfig(_Section):
    """Where the examples come from. Paths are relative to the run file."""

    train: list[str] = Field(min_length=1)
    """Files, globs, `datasets` folders, or hub names written hf:OWNER/NAME[:SPLIT]."""
    eval: list[str] = []
    """Held-out files; empty: split from the training files."""
    fields: FieldsConfig = FieldsConfig()
    """Field mapping where detection cannot tell."""
    system: str = ""
    """A system prompt put before every row that has none."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            return {k: [v] if k in ("train", "eval") and isinstance(v, str) else v for k, v in raw.items()}
        return raw


class CurateConfig(_Section):
    """Switches of curation."""

    drop_duplicates: bool = True
    """Drop rows equal to an earlier one after normalisation."""
    contradictions: Literal["majority", "drop", "keep"] = "majority"
    """Of rows with one prompt and answers that exclude each other: the majority's stay, none, or all, reported."""
    redact: bool = False
    """Put placeholders such as <EMAIL> for secrets and personal data."""
    max_train_tokens: int | None = Field(default=None, ge=1)
    """Choose training rows that cover the prompts within so many tokens."""
    eval_rows: int | None = Field(default=None, ge=20)
    """Held-out rows to split off (default: a tenth, 100 to 1,000)."""
    max_eval_rows: int | None = Field(default=None, ge=20)
    """Score on at most so many held-out rows, a stratified sample (default: all)."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Use at most so many training rows, a stratified sample."""


class EndpointConfig(_Section):
    """A model behind an OpenAI-compatible API, as a prompting arm."""

    name: str
    """How the arm is called in reports."""
    base_url: str
    """For example https://api.example.com/v1."""
    model: str
    """Model name sent with each request."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself never stands in a file."""
    usd_per_million_input_tokens: float = Field(ge=0)
    """List price of a million prompt tokens."""
    usd_per_million_output_tokens: float = Field(ge=0)
    """List price of a million completion tokens."""
    num_parallel: int = Field(default=4, ge=1, le=64)
    """Requests in flight."""
    timeout_s: float = Field(default=60, gt=0)
    """Longest wait for one answer."""


class DecideConfig(_Section):
    """Baselines measured before any training."""

    arms: list[Literal["zero_shot", "few_shot", "linear"]] = ["zero_shot", "few_shot", "linear"]
    """Which baselines; linear is TF-IDF with a linear model, for classification only."""
    num_shots: int = Field(default=4, ge=1, le=64)
    """Examples in a few-shot prompt; fewer where the context is short."""
    max_rows: int = Field(default=200, ge=20)
    """Held-out rows the prompting arms are scored on; fine-tunes are compared on these same rows."""
    endpoints: list[EndpointConfig] = []
    """Larger models to prompt, for comparison."""
    train_anyway: bool = False
    """Train even if a baseline meets the bar."""


class TrainConfig(_Section):
    """Training values a person turned on purpose; each has a derived default with a reason."""

    objective: Literal["sft", "dpo"] = "sft"
    """sft learns the answer; dpo prefers it to the rejected one of each pair."""
    dpo_beta: float = Field(default=0.1, gt=0, le=10)
    """How closely dpo keeps to the base model; larger is closer."""
    num_epochs: float | None = Field(default=None, gt=0, le=100)
    """Passes over the training rows."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | Literal["search"] | None = None
    """Peak learning rate; `search` tries several around the derived one on few tokens and trains with the best."""
    search_tokens: int | None = Field(default=None, ge=64)
    """Tokens that learning_rate: search may spend (default: a quarter of training's)."""
    lora_rank: int | None = Field(default=None, ge=1, le=1024)
    """Rank of the adapter matrices."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale numerator; default equals 2 x rank."""
    batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of the rows in one optimizer step, padding included."""
    micro_batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of one forward and backward pass: padding included, shared beginnings once."""
    recompute: int | None = Field(default=None, ge=0)
    """Layers that run again in backward instead of keeping what they computed; default: as few as memory allows."""
    fp8: bool = False
    """Hold the frozen base in FP8 on cards that multiply it, if the loss stays the same; not yet measured on a card."""
    seq_len: int | None = Field(default=None, ge=16)
    """Longest training row in tokens; longer ones are dropped and counted, held-out rows keep to the context alone."""
    patience: int = Field(default=2, ge=1)
    """Evaluations without a better dev score before training stops."""
    num_evals: int = Field(default=6, ge=1, le=100)
    """Evaluations on the dev rows over the whole schedule."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads."""
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
    def _budget_is_of_a_search(self) -> TrainConfig:
        if self.search_tokens is not None and self.learning_rate != "search":
            raise ValueError("search_tokens is what learning_rate: search may spend; set that, or leave it out")
        return self


class EvaluateConfig(_Section):
    """What is measured of a trained rung besides the task."""

    regression: bool = True
    """Also read general texts and answer general questions before and after, and say what was forgotten."""


class MarketConfig(_Section):
    """What a machine hour costs."""

    price_usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of the machine the run is on; default: the dated table's row for the device."""
    device: str | None = None
    """Row of the price table to plan for, such as H100-SXM; default: the present device."""


class TrafficConfig(_Section):
    """What the model will serve: `shoestring plan` then says the total cost, and from which volume training pays."""

    requests_per_month: float = Field(gt=0)
    """Requests in a month."""
    prompt_tokens: int = Field(ge=1)
    """Tokens of a usual request, instruction included."""
    completion_tokens: int = Field(ge=1)
    """Tokens of a usual answer."""
    months: float = Field(default=12, gt=0, le=120)
    """How long it serves."""


class SynthConfig(_Section):
    """Making rows with a teacher (`shoestring synth`), within budget_usd."""

    teacher: EndpointConfig | None = None
    """The model that writes; empty: the one of decide.endpoints, or the one --endpoint names."""
    samples: int | None = Field(default=None, ge=1, le=32)
    """Answers asked for one input, at most (default: 3; at temperature 0, where all are the same, 1)."""
    agree: int | None = Field(default=None, ge=1, le=32)
    """So many of them must agree (default: more than half)."""
    similarity: float = Field(default=0.45, ge=0, le=1)
    """Answers in free text agree from this likeness on (chrF, 0 to 1); their numbers must agree exactly."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature; at 0 all samples would be the same."""
    max_new_tokens: int = Field(default=1024, ge=1, le=32768)
    """Longest reply; what the budget is checked with before a request is sent."""
    labels: list[str] = []
    """Labels of a classification that has no seeds to learn them from."""
    attributes: dict[str, list[str]] = {}
    """What the teacher is asked to vary, such as topic: [billing, delivery] (default: length, writer, case)."""
    distilabel_python: str = ""
    """Python of the environment that has distilabel, for --engine distilabel."""

    @model_validator(mode="after")
    def _samples_can_agree(self) -> SynthConfig:
        if self.samples and (self.agree or 1) > self.samples:
            raise ValueError(f"agree {self.agree} of {self.samples} samples cannot be; lower agree or raise samples")
        if (self.samples or 1) > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 all samples are the same; raise it or set samples: 1")
        if not all(self.attributes.values()):
            raise ValueError("attributes: each has at least one value")
        return self


class RunConfig(_Section):
    """One run: the bar and the budget are the two dials, the rest follows or is turned on purpose."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Names the run folder runs/NAME."""
    task: TaskConfig
    data: DataConfig
    models: list[str] = Field(default=["embedded"], min_length=1)
    """Ladder rungs: hub names, folders (relative to the run file), or the family name `embedded`."""
    method: Literal["auto", "lora", "qlora"] = "auto"
    """auto: LoRA where the 16-bit base fits, else QLoRA."""
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
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    market: MarketConfig = MarketConfig()
    traffic: TrafficConfig | None = None
    synth: SynthConfig = SynthConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("models"), str):
            return {**raw, "models": [raw["models"]]}
        return raw


def _did_you_mean(word: str, candidates: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(c) for c in candidates], n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
        near = _did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: no such run file{near}; 'shoestring init DATA_FILE' writes one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a run file is YAML text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_run_file(text, str(path))


def parse_run_file(text: str, name: str = "run file") -> RunConfig:
    """Check the text of a run file. Raises: ConfigError."""
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
    where = f"{name}:{line_of(node, location)}"
    dotted = ".".join(str(step) for step in location)
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        key = str(location[-1])
        if len(location) == 1 and key in PLANNED_KEYS:
            return f"{where}: {key!r} ({PLANNED_KEYS[key]}) is not used by this version yet; remove the key"
        allowed = _section_keys(location)
        guess = _did_you_mean(key, allowed) or f"; allowed here: {', '.join(allowed)}"
        return f"{where}: unknown key {dotted!r}{guess}"
    if fault["type"] == "missing":
        return f"{where}: {dotted!r} is missing; 'shoestring explain {dotted}' says what it is"
    message = re.sub(r"^(Value error, |Input )", "", fault["msg"])
    shown = "" if isinstance(value, (dict, list)) else f" = {value!r}"
    return f"{where}: {dotted}{shown}: {message}"
