"""What vLLM is started with: the command, and flags that follow from the adapters and the machine's memory."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadInput, DoesNotFit, MissingDependency
from ...plan.decode import USABLE_FRAC, WIDTH, WORKSPACE_BYTES, kv_bytes_per_token
from ...plan.shapes import ModelShape, shape_of
from ...records import Device
from ...units import gib
from ..adapters import Adapter, Base

VARIABLE = "SHOESTRING_VLLM"
GET_IT = (
    f"make an environment for it (python -m venv DIR && DIR/bin/pip install vllm) and set {VARIABLE}=DIR; or set it to "
    "the command that starts vLLM's server up to the model's name, such as 'docker run --rm --gpus all --network host "
    "--ipc host -e VLLM_API_KEY -e VLLM_ALLOW_RUNTIME_LORA_UPDATING -v /models:/models vllm/vllm-openai:v0.33.0'; or "
    "give a running server by --engine-url"
)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks
SPARE_ADAPTERS = 16  # held in host memory beyond those known at the start, for loads while serving
LEAST_CONTEXT = 512  # tokens; less is no server
SLOTS_FRAC = 0.1  # of the device's memory, at most, for adapters in a batch
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """What vLLM is started with, from the adapters and the plan; reasons: why, for the log."""

    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    max_model_len: int
    max_num_seqs: int
    kv_cache_gib: int | None  # on a CPU, where vLLM cannot tell what it may take
    dtype: str
    reasons: tuple[str, ...]

    def arguments(self) -> list[str]:
        """Of `vllm serve MODEL`."""
        return [
            *("--enable-lora", "--max-lora-rank", str(self.max_lora_rank)),
            *("--max-loras", str(self.max_loras), "--max-cpu-loras", str(self.max_cpu_loras)),
            *("--max-model-len", str(self.max_model_len), "--max-num-seqs", str(self.max_num_seqs)),
            *("--dtype", self.dtype),
            # The model's own sampling defaults (top_k, repetition_penalty) would change what the evaluation measured.
            *("--generation-config", "vllm"),
            # llguidance, as in the embedded engine: it takes BOUNDED.
            *("--structured-outputs-config", '{"backend": "guidance"}'),
        ]


def settings_for(
    base: Base, adapters: Sequence[Adapter], device: Device, *, max_rows: int, shape: ModelShape | None = None
) -> Settings:
    """Ranks, slots and memory of the server: the least that holds these adapters and so many rows at once.

    A slot takes max_lora_rank * sum(in + out) * 2 bytes. On a GPU the context is cut to what is left of its memory.
    Raises: BadInput, ModelError, DoesNotFit.
    """
    shape = shape or shape_of(base.model, base.folder)
    most = max((adapter.rank for adapter in adapters), default=RANKS[2])
    rank = next((r for r in RANKS if r >= most), None)
    if rank is None:
        raise BadInput(f"an adapter has rank {most}, and vLLM takes {RANKS[-1]} at most; merge it first")
    slot_bytes = 2 * shape.num_adapter_params(rank)
    room = max(1, int(SLOTS_FRAC * device.memory_bytes // max(1, slot_bytes)))
    slots = max(1, min(len(adapters) or 1, max_rows, room))
    context = base.context_tokens or shape.context_tokens
    kv_gib, cut = None, ""
    if device.kind != "cpu":
        taken = shape.num_params * WIDTH + slots * slot_bytes + WORKSPACE_BYTES
        held = int((USABLE_FRAC * device.memory_bytes - taken) // max(1, kv_bytes_per_token(shape)))
        if held < LEAST_CONTEXT:
            raise DoesNotFit(
                f"{base.model} with {slots} adapters at once takes {gib(taken)} GiB before any request, and of "
                f"{gib(device.memory_bytes)} GiB vLLM uses {USABLE_FRAC:.0%}: {max(0, held)} tokens are left; serve on "
                "a larger GPU, or fewer runs"
            )
        if held < context:
            cut = f"a context of {held} tokens: {context} do not fit the memory"
        context = min(context, held)
    else:
        wanted = max_rows * context * kv_bytes_per_token(shape) * (2 if device.dtype == "float32" else 1)
        kv_gib = max(1, min(-(-wanted // GIB), device.memory_bytes // 4 // GIB))
    return Settings(
        max_lora_rank=rank,
        max_loras=slots,
        max_cpu_loras=max(slots, len(adapters) + SPARE_ADAPTERS),
        max_model_len=context,
        max_num_seqs=max_rows,
        kv_cache_gib=kv_gib,
        dtype=device.dtype,
        reasons=(
            *((cut,) if cut else ()),
            f"the highest rank is {most}, and vLLM reserves {rank} in every slot",
            f"{slots} adapters in a batch: {len(adapters)} known, {max_rows} rows, {room} slots of "
            f"{slot_bytes / 1e6:.1f} MB in a tenth of the memory",
        ),
    )


def start_command() -> list[str]:
    """What starts vLLM's server, up to the model's name: of SHOESTRING_VLLM, else `vllm` on PATH.

    Raises: MissingDependency with how to get it.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        found = shutil.which("vllm")
        if found is None:
            raise MissingDependency(f"vLLM is not found ({VARIABLE} is not set, PATH holds no vllm); {GET_IT}")
        return [found, "serve"]
    path = Path(given).expanduser()
    for program in (path / "bin" / "vllm", path):
        if program.is_file() and os.access(program, os.X_OK):
            return [str(program), "serve"]
    words = shlex.split(given)
    if path.is_dir() or shutil.which(words[0]) is None:
        raise MissingDependency(f"{VARIABLE}={given} is neither an environment with vLLM nor a command; {GET_IT}")
    return words
