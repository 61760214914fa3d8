"""Site: where a kernel sits in the host, as a value that travels with a graft."""

from dataclasses import dataclass
from typing import Literal, Self

from typing_extensions import override

Kind = Literal["layer", "width"]

_WIDTH = ":width"


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the host where seeds can grow.

    Its text, ``str(site)``, is what logs, tables and histories call it; `parse` reads it back.

    Attributes:
        name: Dotted name of the layer that the kernel sits beside, or of the first layer that
            gives the units of a width.
        kind: ``"layer"``: the kernel reads the layer's input and adds to its output. ``"width"``:
            it adds units between layers.

    Example:
        >>> Site.parse(str(Site("encoder.fc1")))
        Site(name='encoder.fc1', kind='layer')
        >>> str(Site("encoder.fc1", "width"))
        'encoder.fc1:width'
    """

    name: str
    kind: Kind = "layer"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The site that ``str`` wrote; the name of a layer stands for the place beside it."""
        name = text.removesuffix(_WIDTH)
        return cls(text) if name == text else cls(name, "width")

    @override
    def __str__(self) -> str:
        return self.name + (_WIDTH if self.kind == "width" else "")
