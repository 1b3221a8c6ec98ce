"""Checks of the arguments `device` and `dtype` of a module."""

from __future__ import annotations

import torch

from moe_probe.errors import NoSuchName, NotFitting, WrongType
from moe_probe.families.modules import Device

DTYPES = ("float32", "bfloat16", "float16", "float64")
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # names that transformers' `device_map` accepts


def checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """Returns the torch dtype of a name; returns None and "auto" unchanged.

    Raises:
        NoSuchName: there is no such floating-point dtype.
        WrongType: the value is neither a name nor a torch.dtype.
    """
    if dtype is None or dtype == "auto":
        return dtype
    if not isinstance(dtype, str | torch.dtype):
        raise WrongType(f"dtype={dtype!r} is a {type(dtype).__name__}, expected a name or a torch.dtype: 'bfloat16'.")
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise NoSuchName.among("dtype", name, [*DTYPES, "auto"])
    return getattr(torch, name)


def checked_device(device: Device) -> Device:
    """Returns a device that exists, or a value for transformers' `device_map`; `{"": "cpu"}` becomes "cpu".

    Raises:
        NoSuchName: torch knows no such device.
        NotFitting: the machine does not have it.
        WrongType: the value has another type.
    """
    if isinstance(device, dict):
        places = {str(name): checked_device(place) for name, place in device.items()}
        return places[""] if places.keys() == {""} else places
    if device is None or device in SPREAD:
        return device
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise WrongType(
            f"device={device!r} is a {type(device).__name__}, expected a name, a number, a torch.device or a "
            "device_map: 'cuda:0'."
        )
    return _existing(device)


def _existing(device: str | int | torch.device) -> Device:
    try:
        place = torch.device(device)
    except (RuntimeError, ValueError, OverflowError):
        raise NoSuchName.among("device", device, ["cpu", "cuda", "cuda:0", "mps", *SPREAD]) from None
    if place.type == "meta":
        raise NotFitting("device='meta' holds no values, so nothing could be computed; pass 'cpu' or 'cuda'.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise NotFitting(
            f"device={str(device)!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; pass 'cpu'."
        )
    return device


def device_name(device: object) -> str:
    """Returns the same name for all notations of a device."""
    if device is None:
        return "cpu"
    if isinstance(device, dict) or device in SPREAD:
        return str(device)
    place = torch.device(device) if isinstance(device, str | int | torch.device) else device
    named = str(place)
    return f"{named}:0" if named in ("cuda", "mps") else named.removesuffix(":0") if named == "cpu:0" else named
