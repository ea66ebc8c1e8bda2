"""The embedded model family: tiny base models that ship inside the package.

Trained from scratch by scripts/train_embedded.py; see MODEL_CARD.md. Nothing heavy is imported.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmbeddedModel:
    """One base model of the family; its folder is in Hugging Face layout (bf16 safetensors)."""

    name: str
    num_params: int
    context_tokens: int
    path: Path


_FOLDER = Path(__file__).parent
_CONTEXT_TOKENS = 1024

# Cheapest first; the ladder climbs in this order.
EMBEDDED = {
    name: EmbeddedModel(name, num_params, _CONTEXT_TOKENS, _FOLDER / name)
    for name, num_params in (
        ("shoestring-1m", 1_127_296),
        ("shoestring-3m", 3_000_384),
    )
}


def family() -> list[str]:
    """Names of the embedded models, cheapest first."""
    return list(EMBEDDED)


def embedded_path(name: str) -> Path | None:
    """Folder of the named model; None when the name is not one of the family."""
    model = EMBEDDED.get(name)
    return model.path if model else None
