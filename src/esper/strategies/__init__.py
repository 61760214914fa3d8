"""Strategies that choose which seed to grow, and the table of their names.

Example:
    >>> import esper
    >>> "ucb" in esper.strategies.names(), esper.strategies.create("ucb", exploration_constant=1.0)
    (True, UCB(exploration_constant=1.0))
"""

from esper.registry import Registry
from esper.strategies.base import SelectionStrategy

__all__ = ["STRATEGIES", "SelectionStrategy", "create", "names"]

STRATEGIES: Registry[SelectionStrategy] = Registry(
    "strategy",
    {
        "auto": "esper.strategies.pooled.auto:Auto",
        "ucb": "esper.strategies.ucb:UCB",
        "thompson": "esper.strategies.thompson:Thompson",
        "discounted_ucb": "esper.strategies.drifting.forgetful:DiscountedUCB",
        "sliding_ucb": "esper.strategies.drifting.forgetful:SlidingUCB",
        "discounted_thompson": "esper.strategies.drifting.forgetful:DiscountedThompson",
        "sliding_thompson": "esper.strategies.drifting.forgetful:SlidingThompson",
        "change_ucb": "esper.strategies.drifting.change_ucb:ChangeUCB",
        "exp3": "esper.strategies.exp3:Exp3",
        "hierarchical": "esper.strategies.pooled.auto:Hierarchical",
        "epsilon_greedy": "esper.strategies.epsilon_greedy:EpsilonGreedy",
        "performance_weighted": "esper.strategies.performance_weighted:PerformanceWeighted",
        "random": "esper.strategies.uniform:Uniform",
        "round_robin": "esper.strategies.baselines:RoundRobin",
        "fixed": "esper.strategies.baselines:Fixed",
        "always_biggest": "esper.strategies.baselines:AlwaysBiggest",
        "linucb": "esper.strategies.contextual.linear:LinUCB",
        "lin_ts": "esper.strategies.contextual.linear:LinTS",
        "neural": "esper.strategies.contextual.neural:Neural",
    },
    group="esper.strategies",
)

names = STRATEGIES.names
create = STRATEGIES.create
