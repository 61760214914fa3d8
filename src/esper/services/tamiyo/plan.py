"""Plan of a run: what it will do, and what that will cost; it prints as text."""

import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any, final

from typing_extensions import override

from esper.blueprints import BLUEPRINTS, size_within
from esper.contracts.config import Growth
from esper.execution.passes.timing import PassTimes, time_passes
from esper.execution.seeded import Seeded
from esper.execution.side_effect_free import side_effect_free
from esper.services.tamiyo.blueprint_integration import smallest_kernels
from esper.services.tamiyo.growth.aside import Aside
from esper.services.tamiyo.growth.budget import count_host
from esper.services.tamiyo.growth.graft import Training
from esper.services.tamiyo.growth.grower import Grower
from esper.services.tamiyo.report import preformatted, wrapped

_AXES = {
    "B": "examples",
    "T": "time",
    "L": "length",
    "H": "height",
    "W": "width",
    "F": "features",
    "C": "channels",
    "N": "unknown",
}
HOLDOUT_SHARE = 0.1
"""Held-out examples relative to those of an epoch, where the latter are not told."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One wrapped layer, and the kernels that it may get.

    Attributes:
        name: Dotted name.
        module: Class name of the host.
        layout: Axes of its input as they were observed, one letter each; empty if it was not
            called yet.
        kernels: Parameters of the kernel that each blueprint would build.
        misfits: Reason why the other blueprints cannot, in a few words.
        objection: Reason why the layer cannot grow; empty if it can.
    """

    name: str
    module: str
    layout: str
    kernels: Mapping[str, int]
    misfits: Mapping[str, str]
    objection: str

    @override
    def __str__(self) -> str:
        where = f"{self.name}: {self.module}"
        if self.layout:
            where += f" on ({', '.join(self.layout)})"
        kernels = ", ".join(f"{name} {size:,}" for name, size in self.kernels.items())
        parts = [where, self.objection or kernels]
        parts += [f"not {name} ({why})" for name, why in self.misfits.items()]
        return "; ".join(filter(None, parts))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do; ``print`` it.

    Attributes:
        layers: The wrapped layers.
        host_parameters: Parameters of the host: the trainable ones, or all of a frozen host.
        budget: Parameters that growth may add in all.
        kernel_budget: Parameters that one kernel may cost.
        growth: The settings of the schedule.
        cohort: Seeds that an audition may train side by side; 0 where there are none.
        batches: Training batches of an epoch; ``None`` if they were not told.
        holdout_batches: Batches of the holdout; ``None`` if it has no length.
        times: Measured passes; ``None`` if one of them failed.
    """

    layers: tuple[LayerPlan, ...]
    host_parameters: int
    budget: int
    kernel_budget: int
    growth: Growth
    cohort: int
    batches: int | None
    holdout_batches: int | None
    times: PassTimes | None

    def epoch_cost(self, seeds: int) -> float | None:
        """Estimated time of an epoch over that of the plain loop; ``None`` without times.

        Args:
            seeds: Seeds in training.
        """
        times = self.times
        if times is None:
            return None
        every = self.growth.probe_every
        probes = 1 / every if self.batches is None else max(1, self.batches // every) / self.batches
        held_out = HOLDOUT_SHARE * times.examples / times.held_out
        if self.batches is not None and self.holdout_batches is not None:
            held_out = self.holdout_batches / self.batches
        shadows = seeds if self.growth.train_epochs else 0
        aside = probes * times.probe_ms + shadows * times.shadow_ms + held_out * times.evaluation_ms
        return 1 + aside / times.training_ms

    def show(self) -> None:
        """Write it to the standard output, as ``print`` does."""
        sys.stdout.write(f"{self}\n")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, with the estimates for each number of seeds in training."""
        fields = {name: getattr(self, name) for name in Plan.__slots__}
        costs = [self.epoch_cost(seeds) for seeds in range(self.growth.max_active + 1)]
        return {
            **fields,
            "layers": [asdict(layer) for layer in self.layers],
            "growth": self.growth.model_dump(mode="json"),
            "times": None if self.times is None else asdict(self.times),
            "epoch_costs": costs,
        }

    def _repr_html_(self) -> str:
        return preformatted(self)

    @override
    def __str__(self) -> str:
        letters = sorted({letter for layer in self.layers for letter in layer.layout})
        axes = ", ".join(f"{letter} {_AXES[letter]}" for letter in letters)
        able = sum(bool(layer.kernels) for layer in self.layers)
        head = f"plan: {able} of {len(self.layers)} wrapped layers can grow"
        lines = [
            *(wrapped(str(layer), "  ") for layer in self.layers),
            wrapped(f"axes: {axes}; behind a blueprint: its kernel's parameters", "  "),
        ]
        rest = (self._sizes(), self._schedule(), self._aside(), self._holdout(), self._cost())
        return "\n".join([wrapped(head, ""), *lines, *(wrapped(line, "") for line in rest)])

    def _sizes(self) -> str:
        share = self.budget / max(1, self.host_parameters)
        return (
            f"budget: {self.budget:,} parameters, {share:.2g} x the host's "
            f"{self.host_parameters:,}; up to {self.kernel_budget:,} a kernel"
        )

    def _schedule(self) -> str:
        growth = self.growth
        graft = (
            f"a graft trains for {growth.train_epochs} epoch(s) and is blended in for "
            f"{growth.blend_epochs}"
        )
        if not growth.train_epochs:
            graft = f"a graft trains with the host, and is judged after {growth.blend_epochs}"
        begun = f", {growth.starts} begun at the end of one epoch" if growth.starts > 1 else ""
        cohort = ""
        if self.cohort:
            cohort = f"; an audition of up to {self.cohort} seeds counts as one in each layer"
        return (
            f"schedule: {growth.warmup_epochs} epoch(s) of warm-up; {graft}; up to "
            f"{growth.max_active} at once{begun}{cohort}"
        )

    def _aside(self) -> str:
        every = self.growth.probe_every
        probes = f"a probe every {every} batches, at least one an epoch"
        if self.batches is not None:
            probes = f"{max(1, self.batches // every)} probe(s) an epoch"
        steps = "a shadow step a batch" if self.batches is None else f"{self.batches} shadow steps"
        seeds = f"; for each seed in training {steps}" if self.growth.train_epochs else ""
        return f"on the side: {probes}{seeds}"

    def _holdout(self) -> str:
        size = "batches" if self.holdout_batches is None else f"{self.holdout_batches:,} batch(es)"
        examples = "" if self.times is None else f" of about {self.times.held_out:,} examples"
        until = "" if self.growth.measure_on else " until growth is over"
        return (
            f"holdout: {size}{examples}, read at each epoch's end{until}, and once more for each "
            "verdict"
        )

    def _cost(self) -> str:
        alone = self.epoch_cost(0)
        if self.times is None or alone is None:
            return "cost: not known, as a pass that was to be timed failed"
        seeds = range(1, self.growth.max_active + 1)
        active = "".join(f", {self.epoch_cost(n):.2f} x with {n}" for n in seeds)
        if self.cohort > self.growth.max_active:
            active += f", {self.epoch_cost(self.cohort):.2f} x with {self.cohort} that audition"
        active = active if self.growth.train_epochs else ""
        active += "" if self.growth.measure_on else ", 1 x once growth is over"
        times = self.times
        assumed = "" if self.batches else ", if the holdout is a tenth of the training data"
        return (
            f"cost, an estimate: an epoch takes {alone:.2f} x the plain loop's time with no seed "
            f"in training{active}{assumed}; measured on one batch: {times.training_ms:.2g} ms "
            f"forward and backward, {times.probe_ms:.2g} ms a probe, {times.shadow_ms:.2g} ms a "
            f"shadow step, {times.evaluation_ms:.2g} ms an evaluation. The optimizer's step is not "
            "counted, which makes the ratios too high, nor the kernels, which makes them too low"
        )


def plan_of(
    training: Training,
    grower: Grower,
    aside: Aside,
    *,
    batch: Any = None,
    batches: int | None = None,
) -> Plan:
    """Plan of a run that has not begun; a few passes on the side are timed for it.

    Args:
        training: The user's objects.
        grower: Knows the layers, the settings and the limits.
        aside: Catches what fails.
        batch: Training batch to time; by default the first of the holdout.
        batches: Training batches of an epoch, if they are known.
    """
    holdout, times = training.holdout, None
    functions = [f for f in (training.loss_fn, training.accuracy_fn) if f is not None]
    with aside("the timing of a pass"):
        with side_effect_free(training.model, reads=holdout):
            held_out = next(iter(holdout))
        times = time_passes(
            training.model,
            grower.layers,
            functions,
            batch=held_out if batch is None else batch,
            held_out=held_out,
        )
    limits = {name: grower.kernel_limit(name) for name in grower.layers}
    layers = tuple(
        _plan_of(name, layer, limits[name], grower.objection(name))
        for name, layer in grower.layers.items()
    )
    return Plan(
        layers=layers,
        host_parameters=count_host(training.model, grower.layers),
        budget=grower.policy.budget,
        kernel_budget=max(limits.values(), default=grower.kernel_budget),
        growth=grower.policy.growth,
        cohort=_cohort(grower, layers),
        batches=batches,
        holdout_batches=len(holdout) if isinstance(holdout, Sized) else None,
        times=times,
    )


def _cohort(grower: Grower, layers: Sequence[LayerPlan]) -> int:
    """Seeds that may audition side by side: those of a layer, or of all sites that are compared."""
    seeds = [
        sum(name in layer.kernels for name in grower.layers[layer.name].seed_blueprints)
        for layer in layers
    ]
    most = sum(seeds) if grower.policy.compares_sites else max(seeds, default=0)
    limit = grower.grafts.config.seed_selection.most_auditioned or most
    return min(most, limit) if grower.auditions and most > 1 else 0


def _plan_of(name: str, layer: Seeded, kernel_budget: int, objection: str) -> LayerPlan:
    kernels: dict[str, int] = {}
    misfits: dict[str, str] = {}
    if layer.spec is not None and not objection:
        smallest = smallest_kernels(layer)
        for blueprint in dict.fromkeys(layer.seed_blueprints):
            if blueprint not in smallest:
                why = BLUEPRINTS.create(blueprint).mismatch(layer.spec) if blueprint else "unbound"
                misfits[blueprint] = why
            elif smallest[blueprint] > kernel_budget:
                misfits[blueprint] = f"needs {smallest[blueprint]:,}"
            else:
                kernels[blueprint] = size_within(blueprint, layer.spec, budget=kernel_budget)
    return LayerPlan(
        name=name,
        module=layer.host_type,
        layout=layer.spec.axes if layer.spec else "",
        kernels=kernels,
        misfits=misfits,
        objection=objection,
    )
