"""Opens published weight files as lazy tensors by key; knows nothing about mixtures of experts."""

from typing import TYPE_CHECKING

from moe_probe.deferred import Deferred

if TYPE_CHECKING:
    from moe_probe.checkpoint.lazy import InMemory, LazyTensor, Stored
    from moe_probe.checkpoint.store import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "InMemory", "LazyTensor", "Stored", "open_checkpoint"]
__getattr__ = Deferred(__name__, __file__).attribute
