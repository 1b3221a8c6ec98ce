"""The capacity rule of expert-parallel training: an expert drops choices beyond its places (arXiv 2006.16668)."""

from __future__ import annotations

from math import ceil

import numpy as np

from moe_probe.errors import NoSuchName, NotFitting

ORDERS = ("slot", "token", "score")


def capacity(rows: int, experts: int, top_k: int, factor: float = 1.0, groups: int = 1) -> int:
    """Places per expert and group: ceil(factor k ceil(S / E)) for the S rows of a group.

    Factor 1 is the rule of MH-MoE's training code; k = 2 gives GShard's 2 N / (G E) (arXiv 2006.16668, section 3.1).

    Examples:
        >>> capacity(96, 8, 2)
        24
    """
    return ceil(round(factor * top_k * ceil(ceil(rows / groups) / experts), 9))


def arrival_ranks(
    index: np.ndarray, weights: np.ndarray, experts: int, order: str = "slot", groups: int = 1
) -> np.ndarray:
    """Number of choices that arrived at the same expert before each choice, including those that overflow.

    Args:
        index: chosen experts, (S, k), first choice first.
        weights: of the choices, (S, k).
        experts: number of experts E.
        order: order of arrival: `slot`, first choices of all rows before the second ones (GShard, MH-MoE); `token`, all
            choices of a row before those of the next row; `score`, as `slot`, but with rows in descending order of
            their largest weight (batch prioritized routing, arXiv 2106.05974, section 4).
        groups: number of consecutive groups of rows, equal in size up to one row, each with its own counters.

    Returns:
        Ranks of arrival, (S, k), int64.

    Raises:
        InputError: the order is unknown, or there are more groups than rows.
    """
    if order not in ORDERS:
        raise NoSuchName.among("order of arrival", order, ORDERS)
    rows, k = index.shape
    if not 1 <= groups <= rows:
        raise NotFitting(f"groups={groups} is more than the {rows} rows of the batch; pass at most {rows}.")
    choices = np.arange(rows * k).reshape(rows, k)
    if order == "score":
        choices = choices[np.argsort(-weights.max(1), kind="stable")]
    arrival = choices.flatten() if order == "token" else choices.T.flatten()
    group = np.repeat(np.arange(groups), [len(part) for part in np.array_split(np.arange(rows), groups)])
    queue = (index.astype(np.int64) + group[:, None] * experts).flatten()[arrival]
    by_queue = np.argsort(queue, kind="stable")
    starts = np.searchsorted(queue[by_queue], np.arange(experts * groups))
    rank = np.empty(rows * k, np.int64)
    rank[arrival[by_queue]] = np.arange(rows * k) - starts[queue[by_queue]]
    return rank.reshape(rows, k)


def has_place(
    index: np.ndarray,
    weights: np.ndarray,
    experts: int,
    factor: float = 1.0,
    order: str = "slot",
    groups: int = 1,
) -> np.ndarray:
    """Whether the chosen expert has a place for each choice, (S, k) bool; takes the arguments of `arrival_ranks`.

    Examples:
        >>> has_place(np.array([[0], [0], [0], [1]]), np.ones((4, 1)), 2)[:, 0].tolist()
        [True, True, False, True]
    """
    rows, k = index.shape
    return arrival_ranks(index, weights, experts, order, groups) < capacity(rows, experts, k, factor, groups)
