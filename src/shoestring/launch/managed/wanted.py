"""What of the run file and the plan is asked of the service, and what it is predicted to cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...config import PREFERENCES, RunConfig
from ...errors import BadInput
from ...ladder import models_of
from ...market import managed as market
from ...records import Estimate
from ...runfolder import RunFolder
from ...secrets import without_secrets
from ..records import Expense
from .data import Rows, tokens_of
from .dialect import Wanted
from .vendors import Vendor

ITEM = "managed job"
DEFAULT_EPOCHS = 3


@dataclass(frozen=True, slots=True)
class Priced:
    """The bill before anything is sent. usd None: the rate is not known, and notes say so."""

    usd: Estimate | None
    usd_per_million_tokens: float | None
    num_tokens: Estimate  # over all epochs, as the service counts them
    notes: tuple[str, ...]

    def expense(self) -> Expense:
        """As a quote shows it."""
        return Expense(ITEM, predicted_usd=self.usd)


def choices(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section launch.managed, where there is one."""
    return options.get("managed") or {}


def address_of(vendor: Vendor, target: str, options: Mapping[str, Any]) -> str:
    """The service's address: after the colon of --on, else launch.managed.base_url, else its own.

    Raises: BadInput for what is no address, or holds a password.
    """
    address = target or choices(options).get("base_url") or vendor.base_url
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(
            f"--on {vendor.name}: {without_secrets(address)!r} is no address of a service; give it as --on {vendor.name}:https://HOST/v1"
        )
    if parts.username or parts.password or parts.query:
        raise BadInput(
            f"--on {vendor.name}: the address holds a user, password or query, which would be stored with the run; "
            f"give the plain address, and the key in {vendor.key_env}"
        )
    return address


def base_of(config: RunConfig) -> str:
    """The model of the run file that is tuned there, under whose name the result is kept."""
    return models_of(config)[0]


def wanted_of(vendor: Vendor, config: RunConfig, run_folder: Path, options: Mapping[str, Any]) -> Wanted:
    """Raises: BadInput for what cannot be asked of a service."""
    base = base_of(config)
    model = choices(options).get("model") or base
    if model == base and ("embedded" in config.models or Path(base).is_absolute()):
        raise BadInput(
            f"{vendor.name} does not have {base!r}; set launch: {{managed: {{model: NAME}}}} to the name of the base "
            "there, and models: to the same one as it is called here"
        )
    if vendor.sdk == "fireworks" and not model.startswith("accounts/"):
        raise BadInput(
            f"{vendor.name} calls models accounts/fireworks/models/NAME, and {model!r} is no such name; look it up in "
            "its model library, and set launch: {managed: {model: accounts/fireworks/models/NAME}}"
        )
    train = config.train
    if train.objective in PREFERENCES and train.objective != "dpo":
        raise BadInput(f"train.objective {train.objective}: services train by sft and some by dpo; choose one of them")
    for key in ("dora", "rslora", "fp8", "start"):
        if getattr(train, key):
            raise BadInput(f"train.{key} is not offered by {vendor.name}; take it out, or train on a machine")
    settings = planned(run_folder, base).get("settings", {})
    if train.num_epochs is not None and not float(train.num_epochs).is_integer():
        raise BadInput(
            f"train.num_epochs = {train.num_epochs:g}: {vendor.name} counts whole epochs; give "
            f"{math.ceil(train.num_epochs)}"
        )
    method = "full" if config.method == "full" else "lora"
    rate = train.learning_rate if isinstance(train.learning_rate, float) else settings.get("learning_rate")
    return Wanted(
        model=model,
        objective=train.objective,
        method=method,
        num_epochs=math.ceil(train.num_epochs or settings.get("num_epochs") or DEFAULT_EPOCHS),
        learning_rate=rate,
        lora_rank=train.lora_rank or settings.get("lora_rank") or None,
        lora_alpha=train.lora_alpha or settings.get("lora_alpha") or None,
        seq_len=train.seq_len,  # not the plan's: there it is how long packed rows are
        warmup_frac=settings.get("warmup_frac"),
        weight_decay=settings.get("weight_decay"),
        seed=config.seed,
        dpo_beta=train.dpo_beta if train.objective == "dpo" else None,
    )


def planned(run_folder: Path, model: str) -> Mapping[str, Any]:
    """The rung as `shoestring plan` resolved it; empty where it is not planned."""
    record = RunFolder(run_folder).record("plan.json")
    rungs = record["result"]["rungs"] if record else []
    return next((rung for rung in rungs if rung["model"] == model), {})


def counted_tokens(run_folder: Path, model: str) -> int | None:
    """Tokens of an epoch, as the plan counted them with the model's tokenizer."""
    rung = planned(run_folder, model)
    return round(rung["num_train_tokens"] / rung["settings"]["num_epochs"]) if rung else None


def priced(vendor: Vendor, wanted: Wanted, rows: Rows, counted: int | None, given_usd: float | None) -> Priced:
    """The bill by the market's dated rates and the service's rules, or by the rate given.

    counted: tokens of an epoch under the model's own tokenizer; None: from characters, which is what the spread is of.
    Raises: BadInput where the service has no rate for the model and none is given.
    """
    tokens = tokens_of(rows) if counted is None else Estimate(counted, counted, counted)
    rate: float | None
    notes: tuple[str, ...]
    if not vendor.market:
        rate, notes = given_usd, ("the rate is launch.managed.usd_per_million_train_tokens",)
    else:
        terms = market.TERMS[vendor.market]
        if terms.closed and (today := datetime.now(UTC).date()) >= terms.closed:
            raise BadInput(f"{market.closing_words(vendor.market, terms, today)}; choose another service")
        found = market.quote(
            vendor.market,
            wanted.model,
            round(tokens.value),
            num_epochs=wanted.num_epochs,
            num_rows=rows.num_rows,
            method=wanted.method,
            usd_per_million_train_tokens=given_usd,
        )
        rate = found.usd_per_million_train_tokens
        notes = (f"rate: {found.source}", *found.rules, *found.unknown)
    total = tokens.scaled(wanted.num_epochs)
    spread = "tokens are counted by the model's tokenizer, as the plan has them"
    if counted is None:
        spread = f"tokens are counted from {rows.num_chars:,} characters, {total.low:,.0f} to {total.high:,.0f} in all"
    return Priced(None if rate is None else total.scaled(rate / 1e6), rate, total, (*notes, spread))
