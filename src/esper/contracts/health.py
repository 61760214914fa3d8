"""Health of a layer as probes measure it, and the request that a policy makes of it."""

from dataclasses import dataclass, fields
from numbers import Real

from esper.contracts.errors import MeasurementError
from esper.contracts.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSignal:
    """One layer at one epoch; ``None`` is *unmeasured*, which is neither zero nor healthy.

    NaN and infinity, as of a host that diverges, are kept: they say something to the policy.

    Attributes:
        layer_name: Dotted name of the layer in the model.
        epoch: Epoch at whose end the signal was taken, from 0.
        holdout_loss: Held-out loss of the whole model, mean over examples.
        loss_trend: Change of the held-out loss per epoch over the policy's window; < 0 improves.
        gradient_rms: Root mean square over examples of the norm of the loss gradient at the
            layer's output.
        input_rms: Root mean square over examples of the norm of the layer's input.
        activation_mean: Mean of the layer's output.
        activation_sd: Standard deviation of the layer's output.
        dead_fraction: Share of output units, in [0, 1], never positive on the probed batch.
        depth: Relative depth of the layer among those that may grow, in (0, 1): its place in the
            order in which a forward pass leaves them.

    Raises:
        MeasurementError: if a measurement is no number at all.
    """

    layer_name: str
    epoch: int
    holdout_loss: float | None = None
    loss_trend: float | None = None
    gradient_rms: float | None = None
    input_rms: float | None = None
    activation_mean: float | None = None
    activation_sd: float | None = None
    dead_fraction: float | None = None
    depth: float | None = None

    def __post_init__(self) -> None:
        for name in _MEASURED:
            value = getattr(self, name)
            if value is not None and not isinstance(value, Real):
                raise MeasurementError(
                    f"{name} of layer {self.layer_name!r} is {value!r}; a measurement must be a "
                    "number. Leave it out (None) if it could not be taken"
                )


_MEASURED = tuple([item.name for item in fields(HealthSignal) if item.type == (float | None)])


@dataclass(frozen=True, slots=True, kw_only=True)
class GraftRequest:
    """A policy's request to grow at one site now.

    Attributes:
        site: Where to grow.
        epoch: When it was asked for.
        urgency: The site's share of the promise over all sites, in [0, 1].
        kernel_budget: Parameters that one kernel may cost.
        reason: One sentence.
        rivals: Sites whose seeds may audition beside those of ``site``; the best seed of all goes
            on. Without an audition ``site`` grows.
        blueprint: Which of the site's seeds may be chosen; empty for all.
    """

    site: Site
    epoch: int
    urgency: float
    kernel_budget: int
    reason: str
    rivals: tuple[Site, ...] = ()
    blueprint: str = ""
