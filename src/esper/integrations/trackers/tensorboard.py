"""TensorBoard: scalars in a folder of event files."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, final

from esper.integrations.requirements import require

require("tensorboard", "2.14", extra="tensorboard")

from torch.utils.tensorboard import SummaryWriter  # noqa: E402 (checked above)


@final
class TensorBoard:
    """Logs into a folder, or by a ``SummaryWriter`` that the loop has already."""

    def __init__(self, folder: str | PathLike[str] | SummaryWriter) -> None:
        given = isinstance(folder, SummaryWriter)
        self._own = not given
        self.writer: Any = folder if given else SummaryWriter(str(folder))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Note scalars by name at a step."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what waits; a writer of the loop's own stays open."""
        self.writer.close() if self._own else self.writer.flush()
