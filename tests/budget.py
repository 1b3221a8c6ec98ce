"""Budgets of time that mean the same on a slow machine, or a busy one."""

import time
from statistics import median

import pytest

STANDARD = 0.035  # seconds of the processor that the piece of work takes where a budget means seconds


def one_in_three(values):
    """Parameters of a test of which `make test` runs every third, and `make thorough` the others."""
    return [
        pytest.param(value, marks=[pytest.mark.thorough] if number % 3 else []) for number, value in enumerate(values)
    ]


def seconds_here(budget):
    """How many seconds of this processor, as fast as it is now, are `budget` seconds of a usual one."""
    return budget * max(median(_piece_of_work() for _ in range(5)) / STANDARD, 1)


def _piece_of_work():
    began = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - began
