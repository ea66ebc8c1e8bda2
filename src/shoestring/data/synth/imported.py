"""Examples that distilabel made, read from its output files with where they come from.

Columns of distilabel 1.5.3: instruction, system_prompt where one was given, generation (a list where they are
grouped, else a row each), model_name, distilabel_metadata (statistics_STEP holds the tokens of the whole request).
Older releases called the list generations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError
from ..turns import as_text
from .make import Candidate
from .replies import bare
from .shape import AnswerShape
from .texts import rows_of

PROMPT_COLUMNS = ("instruction", "prompt", "input")
ANSWER_COLUMNS = ("generations", "generation", "response", "output")


def read_distilabel(files: Sequence[str], shape: AnswerShape) -> list[Candidate]:
    """A candidate an instruction and model, with all its generations as answers. Raises: DataError."""
    candidates: dict[tuple[str, str, str], Candidate] = {}
    for name in files:
        for row, line in rows_of(name):
            prompt = next((k for k in PROMPT_COLUMNS if row.get(k) is not None), None)
            answer = next((k for k in ANSWER_COLUMNS if k in row), None)
            if prompt is None or answer is None:
                raise DataError(
                    f"{name}:{line}: no distilabel row: it needs {' or '.join(PROMPT_COLUMNS)} and "
                    f"{' or '.join(ANSWER_COLUMNS)}, this has {', '.join(row)}; is it another step's output?"
                )
            text, model = as_text(row[prompt]).strip(), as_text(row.get("model_name"))
            system = as_text(row.get("system_prompt"))
            key = (text, system, model)
            if key not in candidates:
                about: dict[str, Any] = {"from": "distilabel", "file": f"{name} line {line}", "teacher": model or None}
                about |= {"system_prompt": system} if system else {}
                about |= {"tokens": tokens} if (tokens := _tokens(row.get("distilabel_metadata"))) else {}
                # Its price is not in the file, and none is guessed.
                candidates[key] = Candidate(text, about, cost_usd=None)
            value = row[answer]
            answers = value if isinstance(value, list) else [value]
            candidates[key].answers += [(shape.tidy(bare(as_text(a))), "") for a in answers]
    return list(candidates.values())


def _tokens(metadata: Any) -> dict[str, int]:
    """Input and output tokens of a row's request, over its steps; grouped generations repeat them."""
    first = metadata[0] if isinstance(metadata, list) and metadata else metadata
    total: dict[str, int] = {}
    for name, value in first.items() if isinstance(first, dict) else ():
        if name.startswith("statistics_") and isinstance(value, dict):
            for key in ("input_tokens", "output_tokens"):
                if isinstance(value.get(key), int):
                    total[key] = total.get(key, 0) + value[key]
    return total
