"""Releases that spell a family's model in another way, one file each: other fields, other names of tensors.

Each file has a `RELEASE`; other packages add theirs through the entry points `moe_probe.releases`. What a release is
brought to may be a release again: Kimi-K2.5 to its language model, that to DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import DamagedFile, reason
from moe_probe.families import require_names
from moe_probe.registry import Registry

Spelled = tuple[Mapping[str, Any], Mapping[str, LazyTensor]]
LONGEST = 8  # steps from a release to its family
# what reading a configuration or tensors that are not as they should be ends in
DAMAGE = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)


class Release(Protocol):
    """One way of spelling a model.

    Attributes:
        preference: releases are asked from the lowest on.
        title: the releases that it means, as the documentation lists them.
    """

    @property
    def preference(self) -> int: ...

    @property
    def title(self) -> str: ...

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is spelled so."""
        ...

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Configuration and tensors as a family, or another release, has them."""
        ...


RELEASES: Registry[Release] = Registry(__name__, "releases", "release", lambda module, _: module.RELEASE)


def as_family(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint as its family spells it; the same one where it does already.

    Raises:
        CheckpointError: its configuration or tensors are not those of the release that it claims to be.
    """
    require_names(checkpoint.config)
    ordered = sorted(RELEASES.values(), key=lambda release: release.preference)
    for _ in range(LONGEST):
        release = next((each for each in ordered if each.recognises(checkpoint)), None)
        if release is None:
            return checkpoint
        checkpoint = checkpoint.respelled(*_respelled(release, checkpoint))
    raise DamagedFile(
        f"config.json of {checkpoint.path} has a model_type and nested configurations that lead to each other; use the "
        "published file."
    )


def _respelled(release: Release, checkpoint: Checkpoint) -> Spelled:
    try:
        return release.respelled(checkpoint)
    except DAMAGE as error:
        cause = f"{type(error).__name__}: {reason(error)}"
        raise DamagedFile(
            f"The configuration of {checkpoint.path} is not that of the release that it claims to be ({cause}); use "
            "the published files."
        ) from error
