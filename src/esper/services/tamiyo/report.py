"""Report of an epoch: measurements, changes of state and decision; it prints as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from textwrap import fill
from typing import Any

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.seeds import SeedState, seed_name
from esper.contracts.selection import Decision
from esper.contracts.site import Site

WIDTH = 80

FREE_AGAIN = "it may be chosen again"
"""Reason of a seed that is dormant again without a cooldown."""

_FACTS = ("kernel_id", "parameters", "reward", "stderr", "why", "began", "epoch")

_WORDS: Mapping[str, str] = {SeedState.GERMINATED: "chosen", SeedState.FOSSILIZED: "kept"}
"""Plain words for states; the others are plain already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Change of a seed's state.

    Attributes:
        layer_name: Layer of the seed.
        seed_idx: Index of the seed in its layer.
        blueprint: Blueprint bound to the seed.
        old: State before.
        new: State after.
        why: Reason, one sentence.
    """

    layer_name: str
    seed_idx: int
    blueprint: str
    old: str
    new: str
    why: str

    @override
    def __str__(self) -> str:
        seed = seed_name(self.layer_name, self.seed_idx, self.blueprint)
        return f"{seed} {_WORDS.get(self.new, self.new)}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """End of a graft.

    Attributes:
        layer_name: Layer of the seed.
        seed_idx: Index of the seed in its layer.
        blueprint: Blueprint of the kernel.
        kernel_id: Id of the kernel.
        parameters: Trainable parameters of the kernel.
        reward: Held-out loss that it removes, less rent; ``None`` if it failed before it was
            judged.
        stderr: Paired standard error of the counterfactual.
        kept: Whether it stays.
        why: Reason, one sentence.
        began: Epoch at whose end the graft began.
        epoch: Epoch at whose end it was judged.
        passed: Of a placebo that was judged, whether another kernel would have been kept for this;
            ``None`` of others.
    """

    layer_name: str
    seed_idx: int
    blueprint: str
    kernel_id: str
    parameters: int
    reward: float | None
    stderr: float | None
    kept: bool
    why: str
    began: int
    epoch: int
    passed: bool | None = None

    @property
    def site(self) -> Site:
        """Site of the kernel; ``layer_name`` is its text."""
        return Site.parse(self.layer_name)

    @property
    def facts(self) -> dict[str, Any]:
        """Fields in the event of a graft's end, beside the seed and ``kept``."""
        facts = {fact: getattr(self, fact) for fact in _FACTS}
        return facts | ({} if self.passed is None else {"passed": self.passed})


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """Measurements, changes and decision at the end of one epoch; ``print`` it.

    Attributes:
        epoch: Number of the epoch, from 0.
        holdout_loss: Mean held-out loss; NaN if it is NaN, or was not measured: it could not be, or
            growth is over and ``growth.measure_on`` is false.
        holdout_accuracy: Mean held-out accuracy, if ``accuracy_fn`` was given.
        used: Parameters of all kernels, absorbed or under way.
        budget: Parameters that growth may add in all.
        steps: Changes of state, in order.
        verdicts: Grafts that ended.
        decisions: The grafts that began, at most ``growth.starts``.
        reason: Why they began, or why none did.
        over: Why no graft can begin any more; empty while one can, or is under way.
        measured: Whether the held-out values were measured.
    """

    epoch: int
    holdout_loss: float
    holdout_accuracy: float | None
    used: int
    budget: int
    steps: tuple[Step, ...]
    verdicts: tuple[Verdict, ...]
    decisions: tuple[Decision, ...]
    reason: str
    over: str = ""
    measured: bool = True

    @property
    def decision(self) -> Decision | None:
        """The first graft that began, if one did."""
        return next(iter(self.decisions), None)

    @override
    def __str__(self) -> str:
        loss = f"{self.holdout_loss:.4f}" if self.measured else "not measured"
        if self.holdout_accuracy is not None:
            loss += f", accuracy {self.holdout_accuracy:.1%}"
        head = (
            f"epoch {self.epoch}: held-out loss {loss}, "
            f"{self.used} of {self.budget} parameters grown"
        )
        lines = [str(step) for step in self.steps if not _goes_without_saying(step)]
        if self.over:
            lines.append(f"growth is over: {self.over}")
        else:
            lines.append(f"{'why now' if self.decisions else 'no graft'}: {self.reason}")
        return "\n".join([wrapped(head, ""), *(wrapped(line, "  ") for line in lines)])

    def _repr_html_(self) -> str:
        return preformatted(self)

    def to_frame(self) -> Any:
        """Changes of state of the epoch as a pandas ``DataFrame``, a row each, in order.

        Raises:
            ConfigError: if pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise ConfigError("pandas is not installed; pip install pandas") from error
        columns = ["epoch", *Step.__slots__]
        rows = [(self.epoch, *map(partial(getattr, step), Step.__slots__)) for step in self.steps]
        return pd.DataFrame(rows, columns=columns)


def _goes_without_saying(step: Step) -> bool:
    """True of a kernel that is held, which is judged at once, and of one that lost an audition."""
    lost = step.new == SeedState.DORMANT and step.old == SeedState.CULLED
    return step.new == SeedState.HOLDING or (lost and step.why == FREE_AGAIN)


def preformatted(shown: object) -> str:
    """What ``print`` shows, for a notebook.

    Example:
        >>> preformatted("loss < 1")
        '<pre>loss &lt; 1</pre>'
    """
    return f"<pre>{escape(str(shown))}</pre>"


def wrapped(line: str, indent: str) -> str:
    """The line on as many lines as it needs; those after the first are indented by two more."""
    return fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
                break_on_hyphens=False)  # fmt: skip
