"""The exceptions a person sees.

Every message is one sentence that says what is wrong, where (file, key, layer), and what to do. The command line
prints the message alone; scripts catch `MoEProbeError`.
"""


class MoEProbeError(Exception):
    """Base of every error that moe_probe raises on purpose."""


class CheckpointError(MoEProbeError):
    """Files that cannot be opened: missing, truncated, inconsistent or unsafe."""


class WeightError(MoEProbeError):
    """A tensor that is missing, has the wrong shape for its configuration, or holds NaN or infinity."""


class FamilyError(MoEProbeError):
    """A model whose type is unknown, or that has no experts where experts are needed."""


class InputError(MoEProbeError):
    """An argument that does not fit the model or the analysis."""
