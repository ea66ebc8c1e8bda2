"""The processes that train one rung together, one a GPU, as each of them sees it.

The schedule is fixed before training and knows nothing of processes: each step is divided over them, gradients are
summed, and every process takes the same optimizer step. What one must decide for all (evaluation, early stop, an
interruption, how passes are cut) the first one does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import BadInput, TrainingError
from ..records import Device

T = TypeVar("T")
# While the first process evaluates or saves, the others wait. A process that died is seen by whoever started it.
TIMEOUT = timedelta(hours=24)
BUCKET_NUMBERS = 16 * 2**20  # summed at once
# By these accelerate, inside transformers.Trainer, would find the processes and wrap the model a second time.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
MPI_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass
class World:
    """rank of this process among size; alone, everything here does nothing.

    lockstep: the base lies in shards on all of them, so every process must run every pass through the model.
    """

    rank: int = 0
    size: int = 1
    backend: str = ""
    lockstep: bool = False
    num_shrunk: int = 0  # times that earlier processes ran out of memory
    is_left: bool = False  # the first process ended the training for all
    control: Any = None  # gloo group for what lives on the host

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def facts(self) -> dict[str, Any]:
        """For the record."""
        parallelism = "none" if self.size == 1 else "fsdp" if self.lockstep else "ddp"
        return {"num_processes": self.size, "parallelism": parallelism, "backend": self.backend or "none"}

    def of_first(self, make: Callable[[], T]) -> T:
        """What make() gives in the first process; the others do not call it."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        held = [make() if self.is_first else None]
        dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]  # type: ignore[return-value]

    def passing(self, make: Callable[[], T]) -> T:
        """of_first where make() runs the model: over a base in shards every process must take part."""
        if not self.lockstep:
            return self.of_first(make)
        made = make()
        return self.of_first(lambda: made)

    def of_all(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value, group=self.control)
        return held

    def agree(self, facts: dict[str, Any]) -> None:
        """Raises: TrainingError naming what the processes hold different values of."""
        found = self.of_all(facts)
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other.get(name) != value:
                    raise TrainingError(
                        f"process {rank} has {name} = {other.get(name)!r}, process 0 has {value!r}: they would train "
                        "on different things; use GPUs of one kind and one installation, or train.num_processes: 1"
                    )

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of work that is summed or added up; all of it over a base in shards."""
        return items if self.lockstep else items[self.rank :: self.size]

    def total_of_shares(self, values: Any) -> Any:
        """The sum over processes of what each made of its share: a host tensor."""
        if self.size == 1 or self.lockstep:
            return values
        import torch.distributed as dist

        dist.all_reduce(values, group=self.control)
        return values

    def total(self, values: Any) -> Any:
        """The sum over processes of a tensor on the device they train on, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def sum_gradients(self, model: Any) -> None:
        """Every trained parameter's gradient becomes the sum over processes; one that took no part counts as zero."""
        if self.size == 1:
            return
        import torch

        for bucket in _buckets([p for p in model.parameters() if p.requires_grad]):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.total(torch.cat([part.flatten() for part in parts]))
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)


def _buckets(parameters: Sequence[Any]) -> Iterator[list[Any]]:
    """Neighbours of one type, of about BUCKET_NUMBERS together."""
    bucket: list[Any] = []
    for parameter in parameters:
        if bucket and (bucket[0].dtype != parameter.dtype or sum(p.numel() for p in bucket) >= BUCKET_NUMBERS):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


_current = World()


def current() -> World:
    """The world this process trains in."""
    return _current


def is_launched() -> bool:
    """Whether torchrun, accelerate or their like started this process among others, and nobody has joined them yet."""
    return _current.size == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def joined_from_environment(device: Device) -> Iterator[World]:
    """The world that torchrun or accelerate launch describes; each process must see its GPU as the current one.

    Raises: BadInput where accelerate already wraps models in this process.
    """
    from accelerate.state import PartialState

    if PartialState._shared_state.get("distributed_type", "NO") != "NO" and PartialState().num_processes > 1:
        raise BadInput(
            "accelerate is already set up for several processes here and would wrap the model a second time; "
            "call train_rung before any Accelerator or TrainingArguments"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.kind == "cuda":
        _take_gpu(int(os.environ.get("LOCAL_RANK", rank)))
    hidden = {name: os.environ[name] for name in (*LAUNCHER_VARIABLES, *MPI_VARIABLES) if name in os.environ}
    try:
        with joined(rank, size, device, init_method="env://", forget=tuple(hidden)) as world:
            yield world
    finally:
        os.environ.update(hidden)


def _take_gpu(local_rank: int) -> None:
    """See one GPU alone, as cuda:0. Raises: BadInput where CUDA is in use already."""
    import torch

    if torch.cuda.is_initialized():
        if torch.cuda.device_count() > 1:
            raise BadInput(
                "CUDA is in use before train_rung was called, so this process cannot be given one GPU alone; start it "
                f"with CUDA_VISIBLE_DEVICES={local_rank}, or call train_rung first"
            )
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus_of(os.environ)[local_rank] if gpus_of(os.environ) else str(local_rank)


def gpus_of(environment: Any) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, empty where it is not set."""
    return [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]


@contextlib.contextmanager
def joined(rank: int, size: int, device: Device, *, init_method: str, forget: Sequence[str] = ()) -> Iterator[World]:
    """Meet the other processes; `current()` is their world inside. forget: environment variables not needed after."""
    import torch.distributed as dist

    global _current
    backend = "nccl" if device.kind == "cuda" else "gloo"
    own = not dist.is_initialized()
    if own:
        options = {} if init_method == "env://" else {"rank": rank, "world_size": size}
        dist.init_process_group(backend, init_method=init_method, timeout=TIMEOUT, **options)
    for name in forget:
        os.environ.pop(name, None)
    before, _current = _current, World(rank, size, backend, control=dist.new_group(backend="gloo", timeout=TIMEOUT))
    try:
        yield _current
    finally:
        _current = before
        if own:
            dist.destroy_process_group()
