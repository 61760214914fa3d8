"""What strategies over a memory that forgets share: an upper bound, or a draw, of what is left."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from math import log
from typing import ClassVar, Literal

from typing_extensions import override

from esper.contracts.errors import ConfigError, unknown_name
from esper.contracts.selection import SelectionContext, SelectionReason
from esper.records.draws import Draws
from esper.strategies.base import Metrics, SelectionStrategy
from esper.strategies.drifting.forgetting import Forgetting
from esper.strategies.learned import (
    draw_best,
    learned_as,
    standing,
    upper_bounds,
    waiting,
)
from esper.strategies.posteriors import (
    BestDraw,
    Parameters,
    beta_posterior,
    draw,
    gaussian_posterior,
)
from esper.strategies.reasons import bound_reason, draw_reason
from esper.strategies.scoring import others, pick_best, require_number

Posterior = Literal["beta", "gaussian"]
_POSTERIORS = ("beta", "gaussian")


class ForgetfulUCB(SelectionStrategy, ABC):
    """Scores a seed by ``z + sqrt(c * ln(total) / n)``, all of them as the memory has them.

    Attributes:
        memory: What `begin` makes.
        exploration_constant: ``c``, > 0, inside the root.
    """

    memory: ClassVar[type[Forgetting]]
    exploration_constant: float

    @abstractmethod
    @override
    def begin(self, layer_name: str) -> Forgetting: ...

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        learned = learned_as(self.memory, self.knowledge(metrics))
        standings, width = self._standings(viable, metrics, learned)
        scores = upper_bounds(standings, width)
        chosen, chances = draw_best(scores, rng)
        return chosen, SelectionReason(
            self.name,
            chosen,
            scores[chosen],
            scores,
            chances,
            partial(bound_reason, chosen, standings, scores, learned.evidence(chosen)),
            False,
            others(viable, chosen),
        )

    def scores(
        self, viable: Sequence[int], metrics: Metrics, learned: Forgetting
    ) -> dict[int, float]:
        """Upper bounds in standard deviations; inf where nothing is remembered."""
        return upper_bounds(*self._standings(viable, metrics, learned))

    def _standings(
        self, viable: Sequence[int], metrics: Metrics, learned: Forgetting
    ) -> tuple[dict[int, tuple[float, float]], float]:
        total = learned.total(waiting(metrics))
        width = self.exploration_constant * log(max(total, 1.0))
        return standing(viable, metrics, learned.means(), learned.noise()), width


class ForgetfulThompson(SelectionStrategy, ABC):
    """Draws from every seed's posterior over what the memory holds; takes the highest draw.

    Attributes:
        memory: What `begin` makes.
        posterior: ``"gaussian"`` or ``"beta"``.
        prior_count: Average outcomes assumed beforehand, > 0.
    """

    memory: ClassVar[type[Forgetting]]
    posterior: Posterior
    prior_count: float

    @abstractmethod
    @override
    def begin(self, layer_name: str) -> Forgetting: ...

    @override
    def decide(
        self, viable: Sequence[int], metrics: Metrics, context: SelectionContext, rng: Draws
    ) -> tuple[int, SelectionReason]:
        learned = learned_as(self.memory, self.knowledge(metrics))
        posteriors = self.posteriors(sorted(viable), metrics, learned)
        scores = {
            seed: draw(self.posterior, parameters, rng) for seed, parameters in posteriors.items()
        }
        chosen, _ = pick_best(scores, rng)
        return chosen, SelectionReason(
            self.name,
            chosen,
            scores[chosen],
            scores,
            BestDraw(self.posterior, tuple(posteriors.items())),
            partial(
                draw_reason,
                self.posterior,
                posteriors[chosen],
                scores[chosen],
                len(scores),
                learned.evidence(chosen),
            ),
            False,
            others(viable, chosen),
        )

    def posteriors(
        self, viable: Sequence[int], metrics: Metrics, learned: Forgetting
    ) -> dict[int, Parameters]:
        """The parameters of each seed's posterior."""
        standings = standing(viable, metrics, learned.means(), learned.noise())
        if self.posterior == "gaussian":
            return {
                seed: gaussian_posterior(z, trials, self.prior_count)
                for seed, (z, trials) in standings.items()
            }
        prior = (self.prior_count, self.prior_count)
        return {seed: beta_posterior(z, trials, prior) for seed, (z, trials) in standings.items()}

    def check_posterior(self) -> None:
        """Refuse a posterior or a prior that is none.

        Raises:
            ConfigError: naming it.
        """
        require_number(f"{self.name}.prior_count", self.prior_count, above=0)
        if self.posterior not in _POSTERIORS:
            raise ConfigError(unknown_name(f"{self.name}.posterior", self.posterior, _POSTERIORS))
