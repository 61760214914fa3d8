"""Progress and result of a run, and the scores of a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from torch import nn

from esper.execution.kernel import count_parameters
from esper.execution.passes.counterfactual import evaluate
from esper.services.tamiyo.report import EpochReport, Verdict
from esper.services.tamiyo.tamiyo import Tamiyo
from esper.tasks import TASKS
from esper.tasks.base import Task

SCORED_EPOCHS = 3
"""Epochs at the end of a run over whose evaluations the scores are means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Size, losses and accuracies of a network.

    Attributes:
        parameters: Trainable parameters, at the end.
        validation_loss: Mean loss on the held-out data that judged the grafts.
        validation_accuracy: Accuracy there.
        test_loss: Mean loss on data that decided nothing.
        test_accuracy: Accuracy there.
    """

    parameters: int
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a run at the end of an epoch.

    Attributes:
        part: Network that trains, as `networks` names them.
        epoch: The epoch that ended, from 0.
        epochs: Epochs in all.
        loss: Validation loss of that network at its end; ``None`` if it could not be measured.
        control_loss: Validation loss of the control at the end of that epoch.
        parameters: Trainable parameters of that network.
        report: Report of Tamiyo; ``None`` for the others.
        tamiyo: The engine, read-only; ``None`` for the others.
    """

    part: str
    epoch: int
    epochs: int
    loss: float | None
    control_loss: float
    parameters: int
    report: EpochReport | None = None
    tamiyo: Tamiyo | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a run; scores are means over the evaluations of the last epochs.

    Attributes:
        control: The un-grown control.
        grown: The grown network.
        static: A static network of the grown one's size; ``None`` if it was not asked for.
        full: The host, trained in full; ``None`` if it is not frozen, or no static network was
            asked for.
        grafts: Every graft that was judged, in order.
        under_way: Grafts that the end of the run cut short.
        used: Parameters of all kernels at the end, those under way included.
        budget: Parameters that growth could add in all.
        scored_epochs: Epochs at the end over which the scores are means.
    """

    control: Scores
    grown: Scores
    static: Scores | None
    full: Scores | None
    grafts: tuple[Verdict, ...]
    under_way: int
    used: int
    budget: int
    scored_epochs: int


def networks(task: str, *, static: bool) -> list[str]:
    """Networks of a run of a task, in the order in which they train.

    Args:
        task: Name of the task.
        static: Whether a static network of the grown one's size is trained, and a frozen host in
            full.
    """
    frozen = TASKS.load(task).full_rate is not None
    return ["control", "grown", *["static"] * static, *["full"] * (static and frozen)]


def score(task: Task, model: nn.Module) -> Scores:
    """Scores of a network as it is now."""
    validation, test = task.validation_batches(), task.test_batches()
    return Scores(
        parameters=count_parameters(model),
        validation_loss=evaluate(model, task.loss_fn, validation),
        validation_accuracy=evaluate(model, task.accuracy_fn, validation),
        test_loss=evaluate(model, task.loss_fn, test),
        test_accuracy=evaluate(model, task.accuracy_fn, test),
    )


def mean_scores(found: Sequence[Scores]) -> Scores:
    """Mean of the scores of one network at the ends of several epochs; the size is the last."""
    means = {
        field.name: fmean(getattr(one, field.name) for one in found)
        for field in fields(Scores)
        if field.name != "parameters"
    }
    return Scores(parameters=found[-1].parameters, **means)
