"""What a request may hold: every field by name. What would be ignored is refused, so that nothing is dropped unseen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from .errors import ApiError

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_SCHEMA_CHARACTERS = 65_536
SEEDS = 2**63
TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
TOKEN_ID = re.compile(r"[0-9]{1,9}")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # JSON's escape of half a surrogate pair
# Fields that are known and not taken, with the way round them.
NOT_TAKEN = {
    "chat_template": "prompts are written as in training, and no request can change that",
    "chat_template_kwargs": "prompts are written as in training, and no request can change that",
    "functions": "it is deprecated; send tools",
    "function_call": "it is deprecated; send tool_choice",
    "audio": "text alone is answered",
    "prediction": "leave it out",
    "web_search_options": "nothing is searched",
    "verbosity": "a tuned model answers as it was trained to",
    "best_of": "ask for n and choose",  # of a chat
    "suffix": "text is only continued",
    "top_k": "send top_p",
    "min_p": "send top_p",
    "repetition_penalty": "send frequency_penalty or presence_penalty",
}


class Fields(BaseModel):
    """Frozen; unknown fields are refused, and a text is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


Text = str | list[TextPart]


class Function(Fields):
    """What an assistant's call names; arguments: JSON text."""

    name: str
    arguments: str


class Call(Fields):
    """A call in an assistant's message."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: Function


class _Message(Fields):
    @field_validator("content", mode="before", check_fields=False)
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise ValueError(f"a part of type {kind!r}; text alone is read here")
        return content


class SystemMessage(_Message):
    """developer is the newer name of system. name: of its author (conversation.refuse_names)."""

    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(_Message):
    """What is asked."""

    role: Literal["user"]
    content: Text
    name: str | None = None


class AssistantMessage(_Message):
    """An earlier answer; the fields without a value are what the API's own answers carry."""

    role: Literal["assistant"]
    content: Text | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("an assistant's message needs content or tool_calls")
        return self


class ToolMessage(_Message):
    """What a called tool gave. name: the tool's, which the call has said already."""

    role: Literal["tool"]
    content: Text
    tool_call_id: str
    name: str | None = None


AnyMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class Declared(Fields):
    """A function a model may call. parameters: JSON schema."""

    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool; functions alone."""

    type: Literal["function"]
    function: Declared


class Named(Fields):
    """The name of one function."""

    name: str


class NamedTool(Fields):
    """tool_choice: this one."""

    type: Literal["function"]
    function: Named


class TextFormat(Fields):
    """response_format: any text."""

    type: Literal["text"]


class JsonFormat(Fields):
    """response_format: a JSON object."""

    type: Literal["json_object"]


class Schema(Fields):
    """strict changes nothing: answers always keep to the schema."""

    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Fields):
    """response_format: JSON that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


class StreamOptions(Fields):
    """include_obfuscation pads chunks against those who see the length of packets; off here."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Common(Fields):
    """Fields of both ways to ask. The last group is taken and changes nothing here."""

    model: str
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(default=0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-SEEDS, lt=SEEDS)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = Field(default=None, ge=1)

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @field_validator("stop", mode="after")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS or not all(0 < len(each) <= MAX_STOP_CHARACTERS for each in stops):
            raise ValueError(f"give at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters")
        return stop

    @field_validator("logit_bias", mode="after")
    @classmethod
    def _biases(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (given or {}).items():
            if not TOKEN_ID.fullmatch(token) or not -100 <= bias <= 100:
                raise ValueError(f"{token[:40]!r}: {bias:g}; give token ids, each with a number from -100 to 100")
        return given

    @model_validator(mode="after")
    def _options_are_of_a_stream(self) -> Common:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true alone")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Of a stream: a last chunk that says it."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: list[AnyMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: list[Tool] | None = Field(default=None, min_length=1, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true alone")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice goes with tools alone")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"tools declares a name twice: {', '.join(names)}"[:400])
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice names {self.tool_choice.function.name!r}; declared: {', '.join(names)}"[:400]
            )
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of an answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def is_forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)


class TextRequest(Common):
    """POST /v1/completions: text, or token ids, as they stand."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    best_of: int | None = None

    @field_validator("best_of", mode="after")
    @classmethod
    def _chooses_nothing(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        num = info.data.get("n", best_of)  # left out where n itself is at fault
        if best_of not in (None, num):
            raise ValueError(f"{best_of} where n is {num}; nothing is chosen among answers here: ask for n and choose")
        return best_of

    @property
    def prompts(self) -> list[str | list[int]]:
        """One an answer."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return [[token for token in given if isinstance(token, int)]]
        return [each for each in given if not isinstance(each, int)]


Asked = TypeVar("Asked", bound=Common)


def read(kind: type[Asked], body: bytes) -> tuple[Asked, dict[str, Any]]:
    """The request, and its JSON as it came. Raises: ApiError 400 naming the field."""
    try:
        text = body.decode("utf-8-sig")
        raw = json.loads(text)
        if HALF_PAIR.search(text):
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "The request holds one half of a surrogate pair, which is no character.") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The request's body is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "The request's body is no JSON object.")
    raw = {name: value for name, value in raw.items() if value is not None}  # null is as good as left out
    try:
        return kind.model_validate(raw), raw
    except ValidationError as error:
        raise refusal(error.errors(), raw) from None
    except RecursionError:
        raise ApiError(400, "The request's JSON is nested too deeply.") from None


def refusal(faults: Sequence[Any], raw: Mapping[str, Any]) -> ApiError:
    """Of several faults the one that lies deepest: the others are of types that were not meant."""
    fault = max(faults, key=lambda each: (each["type"] == "extra_forbidden", len(each["loc"])))
    param = place(fault["loc"], raw) or None
    name = str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        why = f": {NOT_TAKEN[name]}" if name in NOT_TAKEN else ""
        return ApiError(400, f"{param} is not supported here{why}.", param=param, code="unsupported_parameter")
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "union_tag_invalid":
        message = f"{fault['ctx']['tag'][:40]!r} is none of {fault['ctx']['expected_tags']}"
        param = f"{param}.{fault['ctx']['discriminator']}".replace("'", "")
    what = f"{param}: {message}" if param else message
    code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{what}.", param=param, code=code)


def place(location: Sequence[Any], raw: Any) -> str:
    """Where a fault lies, as the API writes it: messages[0].content; the validator's own steps are left out."""
    words, at = "", raw
    for number, step in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(step, int) and isinstance(at, list):
            words, at = f"{words}[{step}]", at[step] if step < len(at) else None
        elif isinstance(at, dict) and (step in at or (is_last and "[" not in str(step))):
            words, at = f"{words}.{step}" if words else str(step), at.get(step)
    return words
