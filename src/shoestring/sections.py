"""Sections of the run file: how each is checked, the examples, curation, the teacher, the place it runs."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """Frozen; unknown keys are refused; the docstring under a key is its description."""

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


class FieldsConfig(Section):
    """Column or key names, only where detection cannot tell."""

    prompt: str | None = None
    """Key that holds the input text."""
    completion: str | None = None
    """Key that holds the answer."""
    system: str | None = None
    """Key that holds a system prompt."""
    messages: str | None = None
    """Key that holds a list of messages."""


class DataConfig(Section):
    """Where the examples come from. Paths are relative to the run file."""

    train: list[str] = Field(min_length=1)
    """Files, globs, `datasets` folders, or hub names written hf:OWNER/NAME[:SPLIT]."""
    eval: list[str] = []
    """Held-out files; empty: split from the training files."""
    documents: list[str] = []
    """Files, globs or folders (.txt, .md, .html, .pdf) in which facts are looked up: arm rag, train.passages."""
    fields: FieldsConfig = FieldsConfig()
    """Field mapping where detection cannot tell."""
    system: str = ""
    """A system prompt put before every row that has none."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            return {k: [v] if k in ("train", "eval", "documents") and isinstance(v, str) else v for k, v in raw.items()}
        return raw


class CurateConfig(Section):
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


class LadderConfig(Section):
    """Which rungs are trained in full."""

    curve: Literal["auto", "off", "on"] = "auto"
    """Train on small parts of the rows first, and skip a rung whose predicted score misses the bar; auto: where other
    rungs are left and the parts take at most a third of training."""

    @field_validator("curve", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """YAML reads on and off as booleans."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class EndpointConfig(Section):
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

    @model_validator(mode="after")
    def _key_stands_elsewhere(self) -> EndpointConfig:
        if self.api_key_env:
            names_a_variable(self.api_key_env)
        return self

    max_requests_per_min: int | None = Field(default=None, ge=1)
    """Requests begun in a minute, at most; evenly spaced (default: as many as num_parallel gives)."""


class RetrievalConfig(Section):
    """How passages of data.documents, and examples for arm nearest, are found."""

    chunk_tokens: int = Field(default=128, ge=16, le=4096)
    """Longest passage, in tokens of the first model."""
    num_chunks: int = Field(default=4, ge=1, le=64)
    """Passages in a prompt, at most; fewer where the context is short."""
    embeddings: str = ""
    """Folder of a sentence model, relative to the run file, whose ranking is fused with that of the words."""


def names_a_variable(name: str) -> None:
    """Raises: ValueError, which does not repeat it, for what is no name: likely the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            "what is wanted is the name of an environment variable, such as OPENAI_API_KEY, and this is none; if it is "
            "the key itself, take it out of the run file, and put it into a variable"
        )


class SynthConfig(Section):
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


class ManagedConfig(Section):
    """A run trained as a service's job (`shoestring launch --on together` and the like)."""

    model: str = ""
    """The base model as the service calls it (default: the first of models)."""
    base_url: str = ""
    """Address of the service, where it is not the usual one."""
    usd_per_million_train_tokens: float | None = Field(default=None, ge=0)
    """Its price of a million trained tokens, where the dated table does not have it."""
    artifact: Literal["adapter", "merged"] = "adapter"
    """What is brought: the adapter, or the base with the adapter merged in."""
    send_dev_rows: bool = False
    """Send the dev rows too, as its validation file; some services bill their evaluation."""
    python: str = ""
    """Python of the environment that has the service's SDK."""


class LaunchConfig(Section):
    """Where `shoestring launch` carries the run out, and what that costs."""

    place: str = ""
    """What --on says where the command does not: local, ssh:HOST, skypilot, dstack, or a service."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of an hour of the machine there (default: here as market says; an ssh host is taken as yours, for 0)."""
    on_demand_usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of the machine that does not go away, where usd_per_hour is a spot one: taken where spot would be late."""
    env: list[str] = []
    """Names of more environment variables that the run needs there; their values stand in no file of the run."""
    bucket: str = Field(default="", pattern=r"^((s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._/-]*)?$")
    """Where skypilot and dstack keep the run folder: s3://BUCKET/FOLDER, gs:// or az://; their machines do not last."""
    skypilot_python: str = ""
    """Python of the environment that has SkyPilot (default: the `sky` on PATH)."""
    dstack_python: str = ""
    """Python of the environment that has dstack (default: the `dstack` on PATH)."""
    python: str = "python3"
    """Python of the ssh host, 3.11 or newer."""
    at_end: str = ""
    """Command that an ssh host runs once results are fetched, or ten minutes later, such as sudo shutdown -h now."""
    restart_delay_s: float = Field(default=5.0, ge=0)
    """Wait before a run that was killed starts again."""
    trace_speed: float = Field(default=1.0, gt=0)
    """How many times faster than written the file of --preempt passes, to try hours in minutes."""
    managed: ManagedConfig = ManagedConfig()

    @model_validator(mode="after")
    def _names_alone(self) -> LaunchConfig:
        for name in self.env:
            names_a_variable(name)
        return self


class JudgeConfig(Section):
    """Models that judge open text, after the checks that need none (docs/judge.md)."""

    endpoints: list[EndpointConfig] = Field(min_length=1, max_length=9)
    """The judges; of several the majority counts."""
    mode: Literal["rubric", "pairwise"] = "rubric"
    """rubric: each criterion, yes or no; pairwise: better than the reference answer or not, asked in both orders."""
    criteria: list[str] = []
    """What makes an answer good, each to be told by yes or no (default: that it is right)."""
    score: Literal["share", "all"] = "share"
    """A rubric's score of a row: the share of the criteria that are met, or 1 where all are."""
    use_reference: bool = True
    """Show the reference answer beside the rubric."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the judges; 0 is greedy."""
    max_new_tokens: int = Field(default=300, ge=16, le=8192)
    """Longest reply of a judge; what the budget is checked with before it is asked."""
    min_words: int | None = Field(default=None, ge=1)
    """Answers with fewer words fail without being judged."""
    max_words: int | None = Field(default=None, ge=1)
    """Answers with more words fail without being judged."""
    probe_rows: int = Field(default=20, ge=0, le=200)
    """Held-out rows on which each judge's biases are looked for before it is believed; 0: none."""
    allow_same_family: bool = False
    """Take a judge of the family of a judged model or of the teacher, which may favour its own; said in the report."""

    @model_validator(mode="after")
    def _makes_sense(self) -> JudgeConfig:
        names = [endpoint.name for endpoint in self.endpoints]
        if len(set(names)) < len(names):
            raise ValueError("judge.endpoints: two have one name; give each a name of its own")
        if not all(text.strip() for text in self.criteria):
            raise ValueError("judge.criteria: one is empty; write what is to be told by yes or no")
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(
                f"judge.min_words {self.min_words} is above max_words {self.max_words}; no answer could pass"
            )
        return self
