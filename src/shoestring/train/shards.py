"""A frozen base in shards: each process holds its part of every layer and asks the others for a layer's turn (FSDP2).

Only decoder layers are sharded. Embeddings, norms and head stay whole everywhere, for the loss reads the head's weight
(head_loss.py). So does the adapter: its gradients are summed as without shards, and nothing that looks at it changes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import BadInput, ModelError
from ..records import Device, TrainSettings
from .memory_policy import recomputable
from .world import current


def in_shards(settings: TrainSettings) -> bool:
    """Whether this process holds a part of the base only. Raises: BadInput where it is alone."""
    if settings.parallelism != "fsdp":
        return False
    if current().size == 1:
        raise BadInput(
            "train.parallelism: fsdp spreads the base over several processes, and `shoestring check`, `plan --probe` "
            "and learning_rate: search run one; train without them, or choose a base that fits one GPU"
        )
    return True


def on_host(device: Device) -> Device:
    """Where a base is loaded before it is sharded; files are mapped, so that processes share what they read."""
    return dataclasses.replace(device, kind="cpu")


def shard(tuned: Any, device: Device) -> None:
    """Shard the base below a fresh adapter, both on the host, and move them to the device layer by layer.

    Raises: ModelError where the model has no layers to shard, or they are trained.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers, model = recomputable(tuned), tuned.get_base_model()
    if not layers:
        raise ModelError(
            f"train.parallelism: fsdp shards the layers of a model, and {type(model).__name__} has none that are "
            "marked as such; use parallelism: ddp, or another model"
        )
    mesh = init_device_mesh(device.kind, (current().size,))
    sharded: set[Any] = set()
    for layer in layers:
        own = {parameter for parameter in layer.parameters() if not parameter.requires_grad}
        if not own:
            raise ModelError("train.parallelism: fsdp shards a frozen base; of full fine-tuning use parallelism: ddp")
        # The root's own default would keep the last layer whole; here every layer is freed after its turn.
        kept = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        sharded |= own
    root = model.base_model
    fully_shard(root, mesh=mesh, ignored_params={p for p in root.parameters() if p not in sharded})
    place = "cuda:0" if device.kind == "cuda" else device.kind
    tuned.to(place)
    for module in tuned.modules():
        if getattr(module, "quant_state", None) is not None:  # of an NF4 layer, no parameter of it
            module.quant_state.to(place)
