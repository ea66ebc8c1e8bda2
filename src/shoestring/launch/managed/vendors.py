"""The services: where they are, which SDK speaks to them, what they ask of data. Facts with source and date."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date

from ...errors import BadInput, ConfigError

GB = 10**9


@dataclass(frozen=True, slots=True)
class Vendor:
    """One service. None: not stated by the source."""

    name: str
    sdk: str  # module, package and worker's with_SDK.py: together, openai, fireworks
    package: str  # pinned, as pip takes it
    base_url: str  # empty: has to be given
    key_env: str
    account_env: str  # empty: it knows the account by the key
    market: str  # row of market.managed; empty: none
    min_rows: int
    max_rows: int | None
    max_file_bytes: int | None
    weighs_turns: bool  # whether a turn can be left out of the loss by "weight": 0
    turns_alternate: bool  # whether two turns of one role in a row are refused
    learns_calls: bool  # whether an answer may be a tool call
    objectives: tuple[str, ...]
    methods: tuple[str, ...]
    max_tag_chars: int
    hands_out_weights: bool
    chat_url: str  # where the tuned model answers; empty: at base_url
    source: str
    as_of: date


READ = date(2026, 11, 28)
_TOGETHER, _OPENAI, _FIREWORKS = "together==3.1.1", "openai==3.57.0", "fireworks-ai==1.2.30"
VENDORS = {
    vendor.name: vendor
    for vendor in (
        Vendor(
            name="together",
            sdk="together",
            package=_TOGETHER,
            base_url="https://api.together.ai",
            key_env="TOGETHER_API_KEY",
            account_env="",
            market="together",
            min_rows=1,
            max_rows=None,
            max_file_bytes=int(50.1 * 2**30),  # beyond it the SDK refuses; the docs say 100 GB
            weighs_turns=True,
            turns_alternate=True,
            learns_calls=True,
            objectives=("sft", "dpo"),
            methods=("lora", "full"),
            max_tag_chars=40,
            hands_out_weights=True,
            chat_url="https://api.together.xyz/v1",
            source="docs.together.ai/docs/fine-tuning/data-preparation, and the SDK's own limits",
            as_of=READ,
        ),
        Vendor(
            name="fireworks",
            sdk="fireworks",
            package=_FIREWORKS,
            base_url="https://api.fireworks.ai",
            key_env="FIREWORKS_API_KEY",
            account_env="FIREWORKS_ACCOUNT_ID",
            market="fireworks",
            min_rows=3,
            max_rows=3_000_000,
            max_file_bytes=None,
            weighs_turns=True,
            turns_alternate=False,
            learns_calls=True,
            objectives=("sft",),
            methods=("lora",),
            max_tag_chars=63,
            hands_out_weights=True,
            chat_url="https://api.fireworks.ai/inference/v1",
            source="docs.fireworks.ai/fine-tuning/fine-tuning-models",
            as_of=READ,
        ),
        Vendor(
            name="nebius",
            sdk="openai",
            package=_OPENAI,
            base_url="https://api.tokenfactory.nebius.com/v1/",
            key_env="NEBIUS_API_KEY",
            account_env="",
            market="nebius",
            min_rows=1,
            max_rows=None,
            max_file_bytes=5 * GB,  # two of its pages say 5, one says 50
            weighs_turns=False,
            turns_alternate=False,
            learns_calls=False,
            objectives=("sft",),
            methods=("lora", "full"),
            max_tag_chars=64,
            hands_out_weights=True,
            chat_url="",
            source="docs.tokenfactory.nebius.com/post-training/datasets",
            as_of=READ,
        ),
        Vendor(
            name="openai",
            sdk="openai",
            package=_OPENAI,
            base_url="https://api.openai.com/v1",
            key_env="OPENAI_API_KEY",
            account_env="",
            market="openai",
            min_rows=10,
            max_rows=None,
            max_file_bytes=512 * 10**6,
            weighs_turns=True,
            turns_alternate=False,
            learns_calls=True,
            objectives=("sft", "dpo"),
            methods=("lora",),  # what it trains is not said; only its serving is sold
            max_tag_chars=64,
            hands_out_weights=False,
            chat_url="",
            source="developers.openai.com/api/docs/guides/supervised-fine-tuning, and the SDK's words on files",
            as_of=READ,
        ),
        Vendor(
            name="openai-compatible",
            sdk="openai",
            package=_OPENAI,
            base_url="",
            key_env="OPENAI_API_KEY",
            account_env="",
            market="",
            min_rows=1,
            max_rows=None,
            max_file_bytes=None,
            weighs_turns=False,
            turns_alternate=False,
            learns_calls=True,
            objectives=("sft",),
            methods=("lora",),
            max_tag_chars=64,
            hands_out_weights=True,
            chat_url="",
            source="whatever the service says",
            as_of=READ,
        ),
    )
}


def vendor_of(name: str) -> Vendor:
    """Raises: BadInput naming those there are."""
    if name not in VENDORS:
        raise BadInput(f"no managed service {name!r}; choose one of {', '.join(VENDORS)}")
    return VENDORS[name]


def require_key(vendor: Vendor) -> None:
    """Raises: ConfigError where the environment has no key, or no account, for the service."""
    for variable, what in ((vendor.key_env, "key"), (vendor.account_env, "account")):
        value = os.environ.get(variable, "").strip() if variable else "none needed"
        if not value:
            raise ConfigError(f"{vendor.name}: environment variable {variable} is not set; export the {what} there")
        if variable == vendor.key_env and not (value.isascii() and value.isprintable()):
            raise ConfigError(f"{vendor.name}: the key in {variable} holds characters that no key has")


def has_key(vendor: Vendor) -> bool:
    """Whether there is a key to ask with."""
    return bool(os.environ.get(vendor.key_env, "").strip())
