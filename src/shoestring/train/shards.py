"""A frozen base in shards: each process holds its part of every layer and asks the others for a layer's turn (FSDP2).

Only decoder layers are sharded. Embeddings, norms and head stay whole everywhere, for the loss reads the head's weight
(head_loss.py), and so does the adapter, which is put on afterwards: its gradients are summed as without shards.
"""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from ..records import Device
from .memory_policy import recomputable
from .world import current


def shard(model: Any, device: Device) -> None:
    """Shard a base loaded on the host, and move it to the device layer by layer. Raises: ModelError."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = recomputable(model)
    if not layers:
        raise ModelError(
            f"train.parallelism: fsdp shards the layers of a model, and {type(model).__name__} has none that are "
            "marked as such; use parallelism: ddp, or another model"
        )
    mesh = init_device_mesh(device.kind, (current().size,))
    for layer in layers:
        # The root's own default would keep the last layer whole; here every layer is freed after its turn.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    sharded = {parameter for layer in layers for parameter in layer.parameters()}
    root = model.base_model
    fully_shard(root, mesh=mesh, ignored_params={p for p in root.parameters() if p not in sharded})
    model.to("cuda:0" if device.kind == "cuda" else device.kind)
