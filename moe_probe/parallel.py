"""Independent pieces of work over joblib, with a progress bar."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool
from joblib.parallel import get_active_backend

from moe_probe.errors import InputError, MachineError, MoEProbeError
from moe_probe.progress import reporting
from moe_probe.signatures import check_jobs

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_items(
    function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int, description: str, progress: bool = True
) -> Sequence[Result]:
    """Returns `[function(item) for item in items]`, in order, computed by `n_jobs` workers.

    The work goes through joblib: `joblib.parallel_config(backend=...)` around the call spreads it over a Ray or Dask
    cluster. With one worker, errors are raised unchanged.

    Raises:
        OutOfRange: `n_jobs` is 0.
        InputError: something cannot be sent to another process.
        MachineError: a worker died or failed.
        MoEProbeError: an error that the function itself raised, unchanged.
    """
    check_jobs(n_jobs)
    tasks = list(items)
    backend: Any = get_active_backend()[0]
    one_by_one = backend.supports_return_generator  # Ray gives all results at the end
    parallel = Parallel(n_jobs=n_jobs, return_as="generator" if one_by_one else "list")
    with _said(description, several=n_jobs != 1), reporting(description, len(tasks), progress) as advance:
        done = []
        for result in parallel(delayed(function)(item) for item in tasks):
            done.append(result)
            advance()
        return done


@contextmanager
def _said(description: str, several: bool) -> Iterator[None]:
    """Turns failures of worker processes into errors of one sentence."""
    try:
        yield
    except MoEProbeError:
        raise
    except BrokenProcessPool as error:
        raise MachineError(
            f"{description}: a worker died, most often for lack of memory; use fewer n_jobs, or free some memory."
        ) from error
    except MemoryError as error:
        raise MachineError(
            f"{description}: the memory is full{f' ({error})' if str(error) else ''}; use fewer n_jobs, or free some."
        ) from error
    except Exception as error:
        if not several:
            raise
        reason = f"{type(error).__name__}: {error}".strip(": ")
        if _cannot_be_sent(error):
            cause = str(error.__cause__ or error).strip('\n" ').splitlines()[-1]
            raise InputError(
                f"{description}: the work cannot be sent to worker processes ({cause}); use n_jobs=1, or "
                "pass no locks, open files or functions defined inside others."
            ) from error
        raise MachineError(f"{description}: a worker failed ({reason}); use n_jobs=1 to see where.") from error


def _cannot_be_sent(error: Exception) -> bool:
    return isinstance(error, pickle.PicklingError) or "pickle" in str(error)
