"""What goes wrong between processes is one sentence; what the work itself refuses stays as it is."""

import os
import signal
import threading
from functools import partial

import pytest

from moe_probe.errors import InputError, MachineError, NotFitting, OutOfRange, WrongType
from moe_probe.parallel import map_items

pytestmark = pytest.mark.xdist_group("workers")  # on one worker: processes are started once


def double(item):
    return 2 * item


def end(item, how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {"ours": NotFitting("Our sentence."), "memory": MemoryError(), "foreign": ValueError("from a worker")}[how]


def lock(item):
    return threading.Lock()


@pytest.mark.parametrize("jobs", [1, 2])
def test_items_come_in_order(jobs):
    assert map_items(double, range(5), jobs, "Doubling") == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("jobs", "error"), [(0, OutOfRange), (1.5, WrongType), (True, WrongType), ("2", WrongType)])
def test_a_number_of_workers_that_is_none_is_refused(jobs, error):
    with pytest.raises(error, match="n_jobs is"):
        map_items(double, [1], jobs, "Doubling")


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("memory", MachineError, "Ending: the memory is full; use fewer n_jobs"),
        ("foreign", MachineError, r"a worker failed \(ValueError: from a worker\); use n_jobs=1"),
        ("ours", NotFitting, r"^Our sentence\.$"),
        ("killed", MachineError, "Ending: a worker died, most often for lack of memory; use fewer n_jobs"),
    ],
)
def test_workers_that_fail_are_said(how, error, words):
    with pytest.raises(error, match=words):
        map_items(partial(end, how=how), range(4), 2, "Ending")


def test_what_cannot_be_sent_to_a_worker_is_said():
    held = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be sent to worker processes .*; use n_jobs=1"):
        map_items(lambda item: held, [1, 2], 2, "Locking")
    with pytest.raises(InputError, match="cannot be sent to worker processes"):
        map_items(lock, [1, 2], 2, "Locking")


def test_with_one_job_an_error_is_the_functions_own():
    with pytest.raises(ValueError, match="from a worker"):
        map_items(partial(end, how="foreign"), [1], 1, "Ending")
