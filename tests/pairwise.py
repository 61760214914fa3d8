"""Fewer cases from a product of factors, without losing any two values that could interact.

A fault is nearly always that of one value or of two together (Kuhn, Wallace & Gallo, 2004, IEEE
Transactions on Software Engineering 30). So where three or more factors multiply, a test need not
run their whole product: each *pair* of values of different factors must occur in some case.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def every_pair(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases, one value of each factor, in which every two values of different factors meet.

    Greedy, and the same at every call: a case begins with the first two values that have not met,
    and each other factor adds the value that meets most of the others for the first time.

    Args:
        factors: Two or more; with two, every case of their product is needed.

    Example:
        >>> every_pair("ab", "xy", [1, 2])
        [('a', 'x', 1), ('a', 'y', 2), ('b', 'x', 2), ('b', 'y', 1)]
    """
    sizes = [range(len(factor)) for factor in factors]
    missing = {
        ((i, a), (j, b)): None
        for i, j in combinations(range(len(factors)), 2)
        for a, b in product(sizes[i], sizes[j])
    }
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for factor, values in enumerate(sizes):
            if factor not in case:
                case[factor] = max(values, key=lambda v: len(_met(case | {factor: v}, missing)))
        for pair in _met(case, missing):
            del missing[pair]
        cases.append(tuple(factor[case[i]] for i, factor in enumerate(factors)))
    return cases


_Pair = tuple[tuple[int, int], tuple[int, int]]


def _met(case: dict[int, int], missing: dict[_Pair, None]) -> list[_Pair]:
    """The pairs that meet in a case, and have met in none before."""
    return [pair for pair in combinations(sorted(case.items()), 2) if pair in missing]
