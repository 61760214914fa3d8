"""The design's path to the strategies; they live in ``esper.strategies``."""

from esper.strategies import STRATEGIES, SelectionStrategy

__all__ = ["STRATEGIES", "SelectionStrategy"]
