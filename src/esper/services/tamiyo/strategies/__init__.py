"""Strategies: who decides which seed. One file each, and one line here."""

from esper.registry import Registry
from esper.services.tamiyo.strategies._base import SelectionStrategy

__all__ = ["STRATEGIES", "SelectionStrategy"]

_HERE = "esper.services.tamiyo.strategies"

STRATEGIES: Registry[SelectionStrategy] = Registry(
    "strategy",
    {
        "auto": f"{_HERE}.auto:Auto",
        "ucb": f"{_HERE}.ucb:UCB",
        "thompson": f"{_HERE}.thompson:Thompson",
        "discounted_ucb": f"{_HERE}.discounted_ucb:DiscountedUCB",
        "sliding_ucb": f"{_HERE}.sliding_ucb:SlidingUCB",
        "discounted_thompson": f"{_HERE}.discounted_thompson:DiscountedThompson",
        "sliding_thompson": f"{_HERE}.sliding_thompson:SlidingThompson",
        "change_ucb": f"{_HERE}.change_ucb:ChangeUCB",
        "exp3": f"{_HERE}.exp3:Exp3",
        "hierarchical": f"{_HERE}.hierarchical:Hierarchical",
        "epsilon_greedy": f"{_HERE}.epsilon_greedy:EpsilonGreedy",
        "performance_weighted": f"{_HERE}.performance_weighted:PerformanceWeighted",
        "random": f"{_HERE}.uniform:Uniform",
        "round_robin": f"{_HERE}.round_robin:RoundRobin",
        "fixed": f"{_HERE}.fixed:Fixed",
        "linucb": f"{_HERE}.linucb:LinUCB",
        "lin_ts": f"{_HERE}.lin_ts:LinTS",
        "neural": f"{_HERE}.neural:Neural",
    },
    group="esper.strategies",
)
