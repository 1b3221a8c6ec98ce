"""Independent pieces of work over joblib, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_items(
    function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int, description: str
) -> Sequence[Result]:
    """`[function(item) for item in items]`, in order, `n_jobs` at a time.

    Work goes through joblib: `joblib.parallel_config(backend=...)` around the call spreads it over a Ray or Dask
    cluster.
    """
    items = list(items)
    one_by_one = get_active_backend()[0].supports_return_generator  # Ray gives all results at the end
    parallel = Parallel(n_jobs=n_jobs, return_as="generator" if one_by_one else "list")
    results = parallel(delayed(function)(item) for item in items)
    return list(track(results, description, len(items), console=Console(stderr=True), transient=True))
