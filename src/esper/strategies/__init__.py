"""Strategies: who decides which seed. One file and one line here for each.

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
        "discounted_ucb": "esper.strategies.drifting.discounted_ucb:DiscountedUCB",
        "sliding_ucb": "esper.strategies.drifting.sliding_ucb:SlidingUCB",
        "discounted_thompson": "esper.strategies.drifting.discounted_thompson:DiscountedThompson",
        "sliding_thompson": "esper.strategies.drifting.sliding_thompson:SlidingThompson",
        "change_ucb": "esper.strategies.drifting.change_ucb:ChangeUCB",
        "exp3": "esper.strategies.exp3:Exp3",
        "hierarchical": "esper.strategies.pooled.hierarchical:Hierarchical",
        "epsilon_greedy": "esper.strategies.epsilon_greedy:EpsilonGreedy",
        "performance_weighted": "esper.strategies.performance_weighted:PerformanceWeighted",
        "random": "esper.strategies.uniform:Uniform",
        "round_robin": "esper.strategies.baselines:RoundRobin",
        "fixed": "esper.strategies.baselines:Fixed",
        "linucb": "esper.strategies.contextual.linucb:LinUCB",
        "lin_ts": "esper.strategies.contextual.lin_ts:LinTS",
        "neural": "esper.strategies.contextual.neural:Neural",
    },
    group="esper.strategies",
)

names = STRATEGIES.names
create = STRATEGIES.create
