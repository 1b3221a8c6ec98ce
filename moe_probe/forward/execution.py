"""Runs a model in memory or one layer at a time, and restores its state afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast, get_args
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.forward.sites import decoder_layers
from moe_probe.forward.spill import Spill
from moe_probe.forward.steps import Forward
from moe_probe.forward.streaming import StreamedModule
from moe_probe.model import MoEModel
from moe_probe.options import Execution
from moe_probe.texts.corpus import Batch

RESIDENT_SHARE = 0.8  # of the free memory that a model may take to be loaded whole
LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
LOCKS_LOCK = threading.Lock()


class Runner:
    """Runs passes through a model: in memory, or one layer at a time; only the decoder, or up to the head."""

    def __init__(self, model: MoEModel, layerwise: bool, head: bool = False):
        self.streamed = StreamedModule(model, head) if layerwise else None
        self.module = model.module if self.streamed is None else self.streamed.module
        self.decoder, self.layers = decoder_layers(self.module)
        self.runs = self.module if head else self.decoder
        embeddings = cast(torch.Tensor, self.module.get_input_embeddings().weight)
        self.device = torch.device("cpu") if embeddings.is_meta else embeddings.device  # accelerate moves inputs itself

    def each_layer(self, stop: int, backward: bool = False) -> Iterator[int]:
        """Indices 0 to `stop - 1`, or back from there, each while its layer is in memory."""
        order = range(stop)[::-1] if backward else range(stop)
        return iter(order) if self.streamed is None else self.streamed.each_layer(order)

    def start(self, batch: Batch, owner: object, spill: Spill | None = None) -> Forward:
        """Returns a forward pass that waits at its first layer."""
        inputs = {"input_ids": batch.input_ids().to(self.device), "use_cache": False}
        mask = batch.attention_mask()
        if not mask.all():
            inputs["attention_mask"] = mask.to(self.device)
        forward = Forward(lambda: self.runs(**inputs), owner, spill)
        for _ in forward.advance():
            pass
        return forward


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """A context in which only this thread uses the module, in evaluation mode; its modes are restored afterwards."""
    with LOCKS_LOCK:
        lock = LOCKS.setdefault(module, threading.RLock())
    with lock:
        training = [part for part in module.modules() if part.training]
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True


def fits_in_memory(model: MoEModel) -> bool:
    """Whether the model's weights, in the dtype it computes in, leave room for the rest in free memory."""
    if model.checkpoint is None or "module" in vars(model):
        return True
    size = sum(tensor.numel() for tensor in model.published.values()) * model.dtype.itemsize
    if model.device is None or str(model.device).startswith("cpu"):
        return size < RESIDENT_SHARE * psutil.virtual_memory().available
    return not torch.cuda.is_available() or size < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]


def is_layerwise(model: MoEModel, execution: str) -> bool:
    """Whether to go layer by layer.

    Raises:
        NoSuchName: there is no such execution.
        NotFitting: execution is layerwise, but the model is live or was changed in memory.
    """
    if execution not in get_args(Execution):
        raise NoSuchName.among("execution", execution, get_args(Execution))
    if execution == "layerwise" and model.checkpoint is None:
        raise NotFitting("A live model is already in memory; layerwise execution needs published files.")
    layerwise = execution == "layerwise" or (execution == "auto" and not fits_in_memory(model))
    if layerwise:
        model.require_unchanged()
    return layerwise
