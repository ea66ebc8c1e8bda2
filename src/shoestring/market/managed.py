"""What a managed fine-tuning service charges for a job: dated rates, and the rules by which it counts.

A rate that no dated source states is None with its reason; it can be given by the caller, and the rules still count.
"""

from __future__ import annotations

import csv
import difflib
import functools
import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from ..errors import BadInput
from .table import STALE_DAYS

MANAGED_CSV = Path(__file__).with_name("managed.csv")
BASES = ("third-party copy", "undated page", "not found")
PER_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Rate:
    """One row of managed.csv: dollars, None where no source states it."""

    provider: str
    model: str  # empty: every model of more than over_params_b up to max_params_b billion parameters
    over_params_b: float
    max_params_b: float
    method: str  # any, or the one it trains
    usd_per_million_train_tokens: float | None
    usd_per_million_input_tokens: float | None
    usd_per_million_output_tokens: float | None
    hosting_usd_per_gpu_hour: float | None
    as_of: date
    basis: str
    source: str


@dataclass(frozen=True, slots=True)
class Terms:
    """How a provider counts. serving: how the result is served: 'tokens', 'hours' of a dedicated machine, or both."""

    serving: str
    source: str
    unpacked_at_max_len: bool = False
    bills_validation: bool = False
    has_minimum: bool | None = None  # None: not stated
    note: str = ""
    closed_to_new: date | None = None
    closed: date | None = None


TERMS = {
    "together": Terms(
        "hours",
        "docs.together.ai/docs/fine-tuning/pricing",
        unpacked_at_max_len=True,
        bills_validation=True,
        has_minimum=False,
        note="POST v1/fine-tunes/estimate-price states the price of an uploaded file",
    ),
    "fireworks": Terms(
        "hours",
        "docs.fireworks.ai/faq/billing-pricing-usage/pricing/cost-structure",
        note="an adapter needs a dedicated deployment, billed by the GPU-second, and tokens",
    ),
    "tinker": Terms(
        "tokens", "tinker-docs.thinkingmachines.ai", note="LoRA only; checkpoints cost 0.10 USD per GB and month"
    ),
    "prime-intellect": Terms("tokens", "docs.primeintellect.ai/hosted-training/models-and-pricing"),
    "nebius": Terms("tokens", "docs.tokenfactory.nebius.com"),
    "vertex": Terms("both", "cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-tuning"),
    "bedrock": Terms(
        "hours",
        "docs.aws.amazon.com/bedrock/latest/userguide/prov-throughput.html",
        note="stored custom models are billed by the month; older docs serve them by provisioned throughput only",
    ),
    "azure": Terms(
        "both",
        "learn.microsoft.com/azure/foundry/openai/how-to/fine-tuning-cost-management",
        note="global training costs 10 to 30 % less than regional, developer training half of global on spot machines; "
        "hosting is billed by the hour, used or not",
    ),
    "predibase": Terms("both", "predibase.com/pricing", note="bought by Rubrik: do not depend on the platform"),
    "openai": Terms(
        "tokens",
        "OpenAI's notices, as the project's market notes of 2026-11-24 have them",
        note="inactive organisations were cut off on 2026-07-02, Evals ends on 2026-11-30, and fine-tunes of GPT-4o "
        "and GPT-4.1 stop with their base models on 2027-01-14",
        closed_to_new=date(2026, 5, 7),
        closed=date(2027, 1, 6),
    ),
    "ori": Terms("hours", "docs.ori.co/fine-tuning/billing", bills_validation=True),
}


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of the service. num_tokens: of the training rows, once; serving figures over the months wanted."""

    num_tokens: int
    num_epochs: float = 1.0
    num_rows: int | None = None
    max_seq_len: int | None = None
    is_packed: bool = True
    num_validation_tokens: int = 0  # of one evaluation
    num_evals: int = 0
    served_input_tokens: int = 0
    served_output_tokens: int = 0
    hosting_hours: float = 0.0
    hosting_gpus: int = 1


@dataclass(frozen=True, slots=True)
class ManagedQuote:
    """The bill of a job; a part whose rate is not known is None, as is the total then, and unknown says why."""

    provider: str
    model: str
    num_billed_tokens: int
    train_usd: float | None
    serving_usd: float | None
    total_usd: float | None
    usd_per_million_train_tokens: float | None
    source: str
    as_of: date
    age_days: int
    basis: str
    is_open: bool  # whether a new customer can still start a job
    rules: tuple[str, ...]  # what was counted how
    unknown: tuple[str, ...]  # what the bill leaves out, with the reason


@functools.cache
def rates() -> tuple[Rate, ...]:
    """Rows of managed.csv."""
    with MANAGED_CSV.open(encoding="utf-8", newline="") as file:
        return tuple(_rate(row) for row in csv.DictReader(file))


def _rate(row: dict[str, str]) -> Rate:
    prices = {name: float(value) if value else None for name, value in row.items() if "usd_per" in name}
    return Rate(
        provider=row["provider"],
        model=row["model"],
        over_params_b=float(row["over_params_b"]),
        max_params_b=float(row["max_params_b"]),
        method=row["method"],
        as_of=date.fromisoformat(row["as_of"]),
        basis=row["basis"],
        source=row["source"],
        **prices,
    )


def quote(
    provider: str,
    model: str,
    num_tokens: int,
    *,
    num_epochs: float = 1.0,
    num_rows: int | None = None,
    max_seq_len: int | None = None,
    is_packed: bool = True,
    num_validation_tokens: int = 0,
    num_evals: int = 0,
    served_input_tokens: int = 0,
    served_output_tokens: int = 0,
    hosting_hours: float = 0.0,
    hosting_gpus: int = 1,
    method: str = "lora",
    params_b: float | None = None,
    usd_per_million_train_tokens: float | None = None,
    today: date | None = None,
) -> ManagedQuote:
    """The bill of fine-tuning model at provider, and of serving it.

    num_tokens: of the training rows, read once. num_rows and max_seq_len: needed where unpacked rows are billed at
    full length. params_b: billions of parameters, where the model's name does not say them.
    usd_per_million_train_tokens: a rate you know, instead of the table's.
    Raises: BadInput for an unknown provider, a model it does not price, or a number that cannot be.
    """
    job = Job(
        num_tokens=num_tokens,
        num_epochs=num_epochs,
        num_rows=num_rows,
        max_seq_len=max_seq_len,
        is_packed=is_packed,
        num_validation_tokens=num_validation_tokens,
        num_evals=num_evals,
        served_input_tokens=served_input_tokens,
        served_output_tokens=served_output_tokens,
        hosting_hours=hosting_hours,
        hosting_gpus=hosting_gpus,
    )
    terms = _terms_of(provider)
    _check_numbers(job, usd_per_million_train_tokens)
    today = today or datetime.now(UTC).date()
    rate = rate_of(provider, model, params_b, method)
    billed, rules = billed_tokens(terms, job)
    price = rate.usd_per_million_train_tokens if usd_per_million_train_tokens is None else usd_per_million_train_tokens
    unknown = [] if price is not None else [f"training price: {rate.source}; give usd_per_million_train_tokens"]
    serving_usd, reasons = _serving_usd(terms, rate, job)
    unknown += reasons
    if terms.has_minimum is None:
        unknown.append("whether there is a minimum charge: not stated")
    train_usd = None if price is None else billed / PER_MILLION * price
    age_days = (today - rate.as_of).days
    if rate.basis == "undated page":
        rules.append(f"the rate stands on a page without a date, check it at {terms.source}")
    elif age_days > STALE_DAYS:
        rules.append(f"the rate is {age_days} days old, check it at {terms.source}")
    rules += [words for words in (terms.note, closing_words(provider, terms, today)) if words]
    return ManagedQuote(
        provider=provider,
        model=model,
        num_billed_tokens=billed,
        train_usd=train_usd,
        serving_usd=serving_usd,
        total_usd=None if train_usd is None or serving_usd is None else train_usd + serving_usd,
        usd_per_million_train_tokens=price,
        source=rate.source if usd_per_million_train_tokens is None else "given by the caller",
        as_of=rate.as_of,
        age_days=age_days,
        basis=rate.basis if usd_per_million_train_tokens is None else "given",
        is_open=not (terms.closed_to_new and today >= terms.closed_to_new),
        rules=tuple(rules),
        unknown=tuple(unknown),
    )


def _terms_of(provider: str) -> Terms:
    if provider not in TERMS:
        near = difflib.get_close_matches(provider.lower(), TERMS, n=3, cutoff=0.5) or list(TERMS)
        raise BadInput(f"no managed service {provider!r}; there are: {', '.join(near)}")
    return TERMS[provider]


def _check_numbers(job: Job, given_usd: float | None) -> None:
    """Raises: BadInput naming the number."""
    given = [(name, getattr(job, name)) for name in Job.__dataclass_fields__ if name != "is_packed"]
    for name, value in [*given, ("usd_per_million_train_tokens", given_usd)]:
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise BadInput(f"{name} = {value:g}: give a number of 0 or more")
    if job.num_tokens == 0 or job.num_epochs == 0:
        raise BadInput("num_tokens and num_epochs must be above 0: there is nothing to train on")


def rate_of(provider: str, model: str, params_b: float | None = None, method: str = "lora") -> Rate:
    """The row of a model: by name, else by its size. Raises: BadInput listing what there is."""
    rows = [rate for rate in rates() if rate.provider == provider and rate.method in ("any", method)]
    if not rows:
        raise BadInput(f"{provider} does not train by {method!r}; choose lora")
    short = model.split("/")[-1].lower()
    for rate in rows:
        if rate.model and rate.model.lower() == short:
            return rate
    by_size = [rate for rate in rows if not rate.model]
    if not by_size:
        raise BadInput(f"no rate of {provider} for {model!r}; there are: {', '.join(rate.model for rate in rows)}")
    if len(by_size) == 1 and by_size[0].max_params_b >= 1000:
        return by_size[0]
    size = params_b if params_b is not None else size_in_name(short)
    if size is None:
        raise BadInput(f"{provider} prices by size, which {model!r} does not say; give params_b, in billions")
    for rate in by_size:
        if rate.over_params_b < size <= rate.max_params_b:
            return rate
    largest = max(rate.max_params_b for rate in by_size)
    raise BadInput(f"no rate of {provider} for {size:g}B parameters; it goes up to {largest:g}B")


def size_in_name(model: str) -> float | None:
    """Billions of parameters as a model's name says them: 8 of 'Qwen3-8B', 35 of 'Qwen3.6-35B-A3B'."""
    match = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])", model.lower())
    return float(match[1]) if match else None


def billed_tokens(terms: Terms, job: Job) -> tuple[int, list[str]]:
    """Tokens the provider counts, and in words how. Raises: BadInput where unpacked rows need their length."""
    per_epoch, rules = job.num_tokens, []
    if terms.unpacked_at_max_len and not job.is_packed:
        if job.num_rows is None or job.max_seq_len is None:
            raise BadInput("unpacked rows are billed at full length here; give num_rows and max_seq_len, or is_packed")
        per_epoch = job.num_rows * job.max_seq_len
        if per_epoch < job.num_tokens:
            raise BadInput(
                f"{job.num_tokens:,} tokens do not fit into {job.num_rows:,} rows of {job.max_seq_len:,}; "
                "one of num_tokens, num_rows and max_seq_len is wrong"
            )
        rules.append(f"unpacked rows are billed at full length: {job.num_rows:,} x {job.max_seq_len:,} tokens an epoch")
    total = math.ceil(per_epoch * job.num_epochs)
    rules.append(f"{per_epoch:,} tokens x {job.num_epochs:g} epochs")
    if terms.bills_validation and job.num_validation_tokens and job.num_evals:
        total += job.num_validation_tokens * job.num_evals
        rules.append(f"validation is billed: {job.num_validation_tokens:,} tokens x {job.num_evals} evaluations")
    return total, rules


def _serving_usd(terms: Terms, rate: Rate, job: Job) -> tuple[float | None, list[str]]:
    """Dollars of serving what is asked, and what of it is not known."""
    unknown, total = [], 0.0
    by_token = (
        ("input", job.served_input_tokens, rate.usd_per_million_input_tokens),
        ("output", job.served_output_tokens, rate.usd_per_million_output_tokens),
    )
    if terms.serving != "hours":
        for name, num_tokens, price in by_token:
            if num_tokens and price is None:
                unknown.append(f"price of {name} tokens when served: {rate.source}")
            total += num_tokens / PER_MILLION * (price or 0.0)
    is_served = bool(job.served_input_tokens or job.served_output_tokens or job.hosting_hours)
    if terms.serving != "tokens" and is_served:
        if rate.hosting_usd_per_gpu_hour is None:
            unknown.append(f"hosting by the hour: {rate.source}")
        elif not job.hosting_hours:
            unknown.append("hosting by the hour: give hosting_hours, it is billed whether used or not")
        total += job.hosting_hours * job.hosting_gpus * (rate.hosting_usd_per_gpu_hour or 0.0)
    return (None if unknown else total), unknown


def closing_words(provider: str, terms: Terms, today: date) -> str:
    """That a service takes no more jobs, and since when; empty where it does."""
    if terms.closed is None or terms.closed_to_new is None:
        return ""
    if today >= terms.closed:
        return f"{provider} ended fine-tuning on {terms.closed.isoformat()}"
    if today >= terms.closed_to_new:
        return (
            f"{provider} takes no jobs of new customers since {terms.closed_to_new.isoformat()}, and of nobody from "
            f"{terms.closed.isoformat()}"
        )
    return ""
