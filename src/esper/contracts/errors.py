"""Every error Esper raises on purpose, in one tree.

```
EsperError
├── ConfigError (ValueError)        a setting, name or argument is wrong
├── MeasurementError (ValueError)   a measurement is NaN, infinite or missing
├── SelectionError                  a seed cannot be chosen, committed or released
│   └── NoViableSeedError           every seed is busy, cooling down or too large
├── KernelError                     a kernel cannot be built, run or loaded; the host is untouched
├── LifecycleError                  a seed was asked for a step that its state does not allow
├── ReplicaError                    processes that train one model drifted apart, or one is gone
└── StoreError                      a history cannot be opened, read or written
    ├── ConflictError               another event is stored under the same id
    ├── HoleError                   earlier events of a writer are not in the store
    ├── LeaseError                  a run is written by another process that lives
    └── LossError                   a store has lost events, or is not the same store any more
```

A message names the thing, the value, what would be right, and the way out.
"""

from collections.abc import Collection, Iterable
from difflib import get_close_matches


class EsperError(Exception):
    """Root of the tree; catch it to catch everything that Esper raises on purpose."""


class ConfigError(EsperError, ValueError):
    """A setting, a name or an argument is wrong."""


class MeasurementError(EsperError, ValueError):
    """A measurement is NaN, infinite or missing; it was not recorded."""


class SelectionError(EsperError):
    """A seed cannot be chosen, committed or released."""


class NoViableSeedError(SelectionError):
    """No seed of the layer can be activated now; nothing was touched."""


class KernelError(EsperError):
    """A kernel cannot be built, run or loaded; the host is what it was, bit for bit."""


class LifecycleError(EsperError):
    """A seed was asked for a step that its state does not allow."""


class ReplicaError(EsperError):
    """Processes that train one model drifted apart, or one is gone; the run ends in all."""


class StoreError(EsperError):
    """A history cannot be opened, read or written."""


class ConflictError(StoreError):
    """Events are stored already under these ids, with other content; the first one holds.

    Attributes:
        op_ids: The ids; nothing of the batch was written.
    """

    def __init__(self, message: str, op_ids: Collection[str]) -> None:
        super().__init__(message)
        self.op_ids = frozenset(op_ids)


class HoleError(StoreError):
    """A writer's event came before those with lower numbers; nothing of the batch was written.

    Attributes:
        writer: The writer.
        next_number: Number of its first event that is not in the store.
    """

    def __init__(self, message: str, writer: str, next_number: int) -> None:
        super().__init__(message)
        self.writer = writer
        self.next_number = next_number


class LeaseError(StoreError):
    """A run is written by another process that lives."""


class LossError(StoreError):
    """A store has lost events, or is another store than it was; nothing was written.

    Raised once: after it the store goes on with what it has, so that the rest can be told again.
    """


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that ``name`` is not a known ``kind``, list what is, and suggest the nearest.

    Example:
        >>> unknown_name("strategy", "thomson", ["ucb", "thompson"])
        "unknown strategy 'thomson'; known: ucb, thompson. Did you mean 'thompson'?"
    """
    names = list(known)
    text = f"unknown {kind} {name!r}; known: {', '.join(names) or 'none'}."
    nearest = get_close_matches(str(name), names, n=1)
    return f"{text} Did you mean {nearest[0]!r}?" if nearest else text
