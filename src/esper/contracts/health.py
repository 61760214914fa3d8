"""What probes measure of a layer, and what Tamiyo asks for in answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSignal:
    """One layer at one epoch; ``None`` is *unmeasured*, which is neither zero nor healthy.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class GraftRequest:
    """Tamiyo's wish to grow one layer now.

    Attributes:
        layer_name: The layer to grow.
        epoch: When it was asked for.
        urgency: The layer's share of the promise over all layers, in [0, 1].
        kernel_budget: Parameters that one kernel may cost.
        reason: One sentence for a person.
    """

    layer_name: str
    epoch: int
    urgency: float
    kernel_budget: int
    reason: str
