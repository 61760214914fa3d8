"""Audition: what one of several seeds that trained side by side earned, beside the others."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["auto", "always", "never"]
"""When seeds audition: where the strategy is not sure, at every graft, at none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Counterfactual of a seed's kernel at the end of its training in the shadow, and its cohort's.

    Attributes:
        point: Id of the audition, unique within a store.
        gain: Held-out loss without the kernel less that with it; > 0 means that it helps.
        stderr: Paired standard error of ``gain``.
        mean: Mean gain of the cohort, this seed included.
        size: Mean magnitude of the cohort's gains, or of their standard errors if that is larger.
        cohort: Number of seeds that were measured.
    """

    point: str
    gain: float
    stderr: float
    mean: float
    size: float
    cohort: int

    @property
    def relative(self) -> float:
        """Gain less the cohort's mean."""
        return self.gain - self.mean
