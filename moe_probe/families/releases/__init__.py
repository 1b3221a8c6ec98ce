"""Releases with other config fields and tensor keys than their family's; one module converts each kind.

Each module defines a `RELEASE`; other packages add theirs as entry points `moe_probe.releases`. The converted
checkpoint may match a release again: Kimi-K2.5 becomes its language model, and that becomes DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import DamagedFile, reason
from moe_probe.families import require_names
from moe_probe.registry import Registry

Spelled = tuple[Mapping[str, Any], Mapping[str, LazyTensor]]
LONGEST = 8  # maximal number of conversions from a release to its family
# exceptions from converting a damaged configuration or damaged tensors
DAMAGE = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)


class Release(Protocol):
    """A kind of release, which converts its config fields and tensor keys.

    Attributes:
        preference: releases with a lower value are tried first.
        title: the releases that it covers, as the documentation lists them.
    """

    @property
    def preference(self) -> int: ...

    @property
    def title(self) -> str: ...

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is a release of this kind."""
        ...

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns configuration and tensors with the fields and keys of a family, or of another release."""
        ...


RELEASES: Registry[Release] = Registry(__name__, "releases", "release", lambda module, _: module.RELEASE)


def as_family(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint with its family's config fields and tensor keys; the same one if it has them already.

    Raises:
        CheckpointError: its configuration or tensors do not fit the release that recognized it.
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
