"""Set-ups of the effect study: on each task, several sites and seeds that are unlike each other.

By the tasks' own defaults few large kernels grow around the whole network, or units in its widths:
there one seed is as good as another, and nothing is left to choose. Here kernels are small and
many: ten grafts, one after the other, each trained in the shadow, take the first 20 to 30 epochs.
The epochs of the larger tasks are cut to 50 or 100 batches: a tenfold comparison of dozens of runs
is to fit into hours.
The seeds of a site are mechanisms: widen (``bottleneck``, ``conv_block``), multiply (``gate``,
``glu``, ``se``), mix positions (``depthwise``, ``attention``, ``causal_mixer``), low rank
(``lowrank``, ``conv_bottleneck``).

The budget of a kernel is chosen so that the seeds of a site are as equal in size as their widths
allow. Where a host is narrow, the rank of its layer caps a kernel: on ``digits`` those of
``lowrank`` and ``gate`` are smaller at two of three sites. The report lists the sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

from esper.contracts.errors import ConfigError, unknown_name
from esper.studies.trained.fleet import ADAPTATIONS, Adaptation

GRAFTS = 10
"""Grafts over which the primary figure is taken."""

AMPLE = 100_000
"""Budget of growth, in parameters: more than any run grows, so that none ends for want of it."""

_FEATURES = ("bottleneck", "lowrank", "gate", "glu")
_PICTURES = ("conv_block", "conv_bottleneck", "depthwise", "se")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Sites, seeds and schedule of the runs on one task.

    Attributes:
        task: Name in the table of tasks.
        layers: Sites, as ``esper.wrap`` takes them.
        seeds: Blueprint of each seed of every site.
        kernel_budget: Parameters that one kernel may have.
        batches: Batches of an epoch, drawn anew in each; ``None`` for all of the training data.
        epochs: Length of a run.
        train_epochs: Epochs of a kernel in the shadow.
        blend_epochs: Epochs in which its alpha rises to 1; it is judged at their end.
        warmup_epochs: Epochs before the first graft begins.
        budget: Parameters that growth may add to a network in all.
        keep_stderrs: Standard errors of its gain beyond which a kernel is kept.
        adaptations: Length of a fleet: so many networks, one after another, each on a task of its
            own and with the history of those before; 0 for one network.
    """

    task: str
    layers: tuple[str, ...]
    seeds: tuple[str, ...]
    kernel_budget: int
    batches: int | None = None
    epochs: int = 24
    train_epochs: int = 1
    blend_epochs: int = 1
    warmup_epochs: int = 2
    budget: int = AMPLE
    keep_stderrs: float = 2.0
    adaptations: int = 0

    @property
    def cycle(self) -> int:
        """Epochs from the beginning of a graft to its verdict, at whose end the next one begins."""
        return self.train_epochs + self.blend_epochs

    def verdict(self, grafts: int) -> int:
        """Epoch, from 0, at whose end so many grafts in a row are judged; the last at most.

        Example:
            >>> [SETUPS["letter"].verdict(grafts) for grafts in (0, 1, 10)]
            [1, 3, 21]
        """
        return min(self.warmup_epochs - 1 + grafts * self.cycle, self.epochs - 1)

    @property
    def window(self) -> range:
        """Epochs of the primary figure: after the first graft has begun, up to the tenth verdict.

        They depend on the schedule alone, so all cells are compared at equal epochs, however many
        of their grafts failed.
        """
        return range(self.warmup_epochs, self.verdict(GRAFTS) + 1)

    def settings(self, selection: Mapping[str, Any], policy: str) -> dict[str, Any]:
        """Settings of a run as ``esper.Tamiyo`` takes them.

        Args:
            selection: Section ``seed_selection`` without its constraints.
            policy: Policy that says where.
        """
        return {
            "policy": policy,
            "seed_selection": {**selection, "constraints": {"min_dormant_epochs": 0}},
            "growth": {
                "budget": self.budget,
                "keep_stderrs": self.keep_stderrs,
                "kernel_budget": self.kernel_budget,
                "warmup_epochs": self.warmup_epochs,
                "cooldown_epochs": 0,
                "plateau_threshold": 1.0,
                "max_active": 1,
                "train_epochs": self.train_epochs,
                "blend_epochs": self.blend_epochs,
                "epochs": self.epochs,
            },
        }


FLEET = Setup(
    task="fleet",
    layers=Adaptation.layers,
    seeds=Adaptation.seeds,
    kernel_budget=Adaptation.default_budget,
    budget=Adaptation.default_budget,
    epochs=Adaptation.default_epochs,
    train_epochs=2,
    keep_stderrs=0.0,  # 200 examples cannot tell more of kernels so small, and the host is frozen
    adaptations=ADAPTATIONS,
)
"""Many small adaptations of a frozen network, each with room for one kernel."""

SETUPS: Mapping[str, Setup] = MappingProxyType(
    {
        setup.task: setup
        for setup in (
            Setup(
                task="letter",
                layers=("fc1", "fc2", "fc3"),
                seeds=_FEATURES,
                kernel_budget=120,
                batches=100,
            ),
            # Its epochs are short: in one, a kernel learns too little in the shadow to be judged.
            Setup(
                task="digits",
                layers=("fc1", "block", "head"),
                seeds=_FEATURES,
                kernel_budget=140,
                train_epochs=2,
                epochs=34,
            ),
            Setup(
                task="mnist1d",
                layers=("conv1", "conv2", "conv3"),
                seeds=_PICTURES,
                kernel_budget=300,
            ),
            Setup(
                task="mnist5k",
                layers=("conv1", "conv2", "conv3"),
                seeds=_PICTURES,
                kernel_budget=300,
            ),
            Setup(
                task="kjv",
                layers=("block1", "block2", "head"),
                seeds=("bottleneck", "glu", "attention", "causal_mixer"),
                kernel_budget=222,
                batches=50,
            ),
            Setup(
                task="resmlp",
                layers=("stem", "block1", "block2"),
                seeds=_FEATURES,
                kernel_budget=115,
                batches=100,
            ),
            Setup(
                task="resnet",
                layers=("block1", "block2", "block1.conv1", "block2.conv1"),
                seeds=_PICTURES,
                kernel_budget=300,
            ),
        )
    }
)
"""Set-up of each task."""


def setup_of(task: str) -> Setup:
    """Set-up of a task.

    Raises:
        ConfigError: if it has none; the message suggests the nearest name.
    """
    if task not in SETUPS:
        raise ConfigError(unknown_name("task of the effect study", task, SETUPS))
    return SETUPS[task]
