"""Policies: who decides where and when to grow. One file and one line here for each."""

from esper.registry import Registry
from esper.services.tamiyo.policies.base import LayerGrowth, Policy, Situation

__all__ = ["POLICIES", "LayerGrowth", "Policy", "Situation"]

POLICIES: Registry[Policy] = Registry(
    "policy",
    {
        "gradient": "esper.services.tamiyo.policies.gradient:GradientPolicy",
        "heuristic": "esper.services.tamiyo.policies.heuristic:HeuristicPolicy",
        "learned": "esper.services.tamiyo.policies.learned:LearnedPolicy",
    },
    group="esper.policies",
)
