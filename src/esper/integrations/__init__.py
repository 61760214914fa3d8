"""Integrations: training loops of other frameworks that a model grows in. One file, one line here.

Each has a class ``Growth`` that hands the framework's batches and epochs to a ``Tamiyo``; no
framework is imported before its name is loaded.

Example:
    >>> INTEGRATIONS.names()
    ['plain', 'lightning', 'transformers', 'accelerate']
"""

from typing import TYPE_CHECKING

from esper.registry import Registry

if TYPE_CHECKING:
    from esper.integrations.base import Integration

__all__ = ["INTEGRATIONS"]

INTEGRATIONS: "Registry[Integration]" = Registry(
    "integration",
    {
        "plain": "esper.integrations.plain:Growth",
        "lightning": "esper.integrations.lightning:Growth",
        "transformers": "esper.integrations.transformers:Growth",
        "accelerate": "esper.integrations.accelerate:Growth",
    },
    group="esper.integrations",
)
