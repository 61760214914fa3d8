"""Site: where a kernel sits in the host, as a value that travels with a graft."""

from dataclasses import dataclass
from typing import Literal, Self

from typing_extensions import override

Kind = Literal["layer"]


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the host where seeds can grow.

    Its text, ``str(site)``, is what logs, tables and histories call it; `parse` reads it back.

    Attributes:
        name: Dotted name of the layer that the kernel sits beside.
        kind: ``"layer"``: the kernel reads the layer's input and adds to its output.

    Example:
        >>> Site.parse(str(Site("encoder.fc1")))
        Site(name='encoder.fc1', kind='layer')
    """

    name: str
    kind: Kind = "layer"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The site that ``str`` wrote; the name of a layer stands for the place beside it."""
        return cls(text)

    @override
    def __str__(self) -> str:
        return self.name
