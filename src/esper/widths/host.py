"""The host within a grown model: its parameters, without those of kernels."""

from torch import nn

from esper.execution.surgery import seeded_modules


def host_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of a model without its kernels, in the order of ``model.parameters()``.

    For an optimizer that is made over a grown model: ``Tamiyo`` adds the kernels. Units that were
    merged are the host's own.

    Example:
        >>> from esper.contracts.seeds import SeedState
        >>> from esper.execution.surgery import wrap
        >>> model = wrap(nn.Sequential(nn.Linear(4, 2)), ["0"], ["lowrank"])
        >>> model[0].load_kernel(0, nn.Linear(4, 2))
        >>> for state in ("training", "blending"):
        ...     model[0].advance(0, SeedState(state))
        >>> len(list(model.parameters())), len(host_parameters(model))
        (4, 2)
    """
    sites = seeded_modules(model).values()
    kernels = [part.kernel for site in sites for part in site.contributions()]
    grown = {id(parameter) for kernel in kernels for parameter in kernel.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in grown]
