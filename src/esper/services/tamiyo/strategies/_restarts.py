"""Means and noise of a layer's seeds that start afresh when rewards change, in a few bytes.

Everything is packed: 36 bytes of the layer's own and 32 per seed, which with what Python adds are
397 bytes for a layer of eight. What is compared with a threshold is kept in single precision, what
rewards are compared with in double; distances from a mean, not rewards, so a shift costs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite, sqrt
from struct import Struct
from struct import error as StructError
from typing import Any, Final, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.services.tamiyo.history import LayerKnowledge

_HEAD: Final = Struct("<dddIIHH")
"""Squared surprises, squares about the layer's mean, that mean; outcomes, outcomes since the last
restart; surprises, restarts."""

_SEED: Final = Struct("<dfffffHH")
"""Mean, outcomes; evidence for a rise and for a fall; mean and length of the run of each."""

_STANDING: Final = Struct("<df20x")
"""The first two of them alone, as every choice reads them."""

_MEMORY: Final = 1000
"""Outcomes that means and noise remember."""

_READY: Final = 5
"""Surprises that are needed before one can be judged."""

_DRIFT: Final = 0.25
"""Half of the smallest shift that is looked for, in standard deviations."""

_LIMIT: Final = 16.0
"""Where evidence becomes an alarm: 8 nats for a shift of half a standard deviation."""

_CLIP: Final = 2.0
"""A surprise counts as no more than this many standard deviations: one alone proves little."""

_KEPT: Final = 8.0
"""Outcomes that anything keeps at most through a restart."""

_ROUNDING: Final = 1e-12
"""A spread below this share of the rewards' size is rounding, not information."""

_WORD, _LONG, _SINGLE, _NO_SPREAD = 2**16 - 1, 2**32 - 1, 3e38, inf


Run = tuple[float, float, int]
"""A stretch of a seed's outcomes that speaks for a change in one direction: its evidence, >= 0; its
mean reward, relative to the seed's mean; its length."""

_NONE: Final[Run] = (0.0, 0.0, 0)


@final
class Restarting(LayerKnowledge):
    """Mean and outcomes of every seed since its rewards last changed, and their noise.

    A two-sided CUSUM of each seed sums up how far its outcomes are off its mean, each by at most
    two standard deviations. At 16 the seed starts afresh, with the mean of the stretch that raised
    the alarm and no more than 8 outcomes' worth of confidence, since such a stretch looks more
    extreme than it is. If its mean was the best and it fell, or was not and it rose above the best,
    the others are in doubt too: each keeps at most 8 outcomes and the average of all means.

    The noise is the standard deviation within seeds, of the last 1000 outcomes or so, with one
    degree of freedom of the standard deviation of all.

    Source:
        Page (1954), Continuous Inspection Schemes, Biometrika 41 (CUSUM); Liu, Lee & Shroff (2018),
        A Change-Detection Based Framework for Piecewise-Stationary Multi-Armed Bandits, algorithms
        1 and 2.

    Example:
        Seed 0 earns 2 and 0 in turn, seed 1 a half of that: squares of 25 about the means, with 38
        degrees of freedom, and a variance of 0.705 of all. Then seed 1 earns 4, 10 times until it
        is believed, and starts afresh at 4. Its mean had become the best before: no doubt about
        seed 0.

        >>> learned = Restarting()
        >>> for reward in (2.0, 0.0) * 10:
        ...     learned.learn(0, reward, None)
        ...     learned.learn(1, reward / 2, None)
        >>> learned.means(), round(learned.noise(), 3)  # sqrt((25 + 0.705) / 39)
        ({0: (1.0, 20.0), 1: (0.5, 20.0)}, 0.812)
        >>> for reward in (4.0,) * 10:
        ...     learned.learn(1, reward, None)
        >>> {seed: (round(mean, 3), count) for seed, (mean, count) in learned.means().items()}
        {0: (1.0, 20.0), 1: (4.0, 8.0)}
    """

    __slots__ = ("_cells", "_seeds")

    def __init__(self) -> None:
        self._cells = bytearray(_HEAD.size)
        self._seeds: tuple[int, ...] | None = ()
        """The seeds that rows belong to, in order; ``None``: 0, 1, 2 and so on."""

    @property
    def restarts(self) -> int:
        """How often something started afresh."""
        restarts: int = _HEAD.unpack_from(self._cells)[6]
        return restarts

    @property
    def since(self) -> int:
        """Outcomes in the layer since the last restart, or ever."""
        since: int = _HEAD.unpack_from(self._cells)[4]
        return since

    def means(self) -> dict[int, tuple[float, float]]:
        """Mean reward and outcomes of every seed, as far as they still count."""
        rows = _STANDING.iter_unpack(memoryview(self._cells)[_HEAD.size :])
        numbered = enumerate(rows) if self._seeds is None else zip(self._seeds, rows, strict=True)
        return {seed: row for seed, row in numbered if row[1]}

    def noise(self) -> float:
        """Standard deviation of a reward about its seed's mean; inf if rewards do not differ."""
        m2, total, centre, seen, _, surprises, _ = _HEAD.unpack_from(self._cells)
        return _usable(_variance(m2, total, seen, surprises), centre)

    @override
    def learn(self, seed_idx: int, reward: float, decision: object) -> None:
        at, cells = self._place(seed_idx), self._cells
        m2, total, centre, seen, since, surprises, restarts = _HEAD.unpack_from(cells)
        mean, known, rise, fall, rose, fell, rising, falling = _SEED.unpack_from(cells, at)
        noise = _usable(_variance(m2, total, seen, surprises), centre)
        ready = surprises >= _READY
        seen = min(seen + 1, _LONG)
        off = reward - centre
        centre += off / min(seen, _MEMORY)
        total += off * (reward - centre)
        off = reward - mean
        if known:
            if surprises < _MEMORY:
                surprises += 1
            else:
                m2 -= m2 / _MEMORY
            m2 += off * off * known / (known + 1)
        since = min(since + 1, _LONG)
        _HEAD.pack_into(cells, 0, m2, total, centre, seen, since, surprises, restarts)
        if not known:
            _SEED.pack_into(cells, at, reward, 1.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
            return
        up, down = (rise, rose, rising), (fall, fell, falling)
        if ready and noise < _NO_SPREAD:
            sure = min(known, _MEMORY)
            push = max(-_CLIP, min(off / noise * sqrt(sure / (sure + 1)), _CLIP))
            up, down = _followed(up, push - _DRIFT, off), _followed(down, -push - _DRIFT, off)
            if up[0] > _LIMIT or down[0] > _LIMIT:
                run = up if up[0] > _LIMIT else down
                self._restart(at, mean + run[1], min(float(run[2]), _KEPT), run is up)
                return
        known += 1
        step = off / min(known, _MEMORY)
        # Runs are relative to the mean, which moves.
        rose, fell = _single(up[1] - step), _single(down[1] - step)
        _SEED.pack_into(cells, at, mean + step, known, up[0], down[0], rose, fell, up[2], down[2])

    @override
    def forget(self, seed_idx: int) -> None:
        at = self._row(seed_idx)
        if at:
            _SEED.pack_into(self._cells, at, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)

    def _restart(self, at: int, mean: float, known: float, rose: bool) -> None:
        cells = self._cells
        head = _HEAD.unpack_from(cells)
        _HEAD.pack_into(cells, 0, *head[:4], 0, head[5], min(head[6] + 1, _WORD))
        rows = [row for row in self._rows() if _SEED.unpack_from(cells, row)[1]]
        means = [_SEED.unpack_from(cells, row)[0] for row in rows]
        best = rows[means.index(max(means))]
        in_doubt = not rose if at == best else mean > max(means)
        _SEED.pack_into(cells, at, mean, known, 0.0, 0.0, 0.0, 0.0, 0, 0)
        if not in_doubt:
            return
        means[rows.index(at)] = mean
        average = mean + sum([other - mean for other in means]) / len(means)
        for row in rows:
            if row != at:
                kept = min(_SEED.unpack_from(cells, row)[1], _KEPT)
                _SEED.pack_into(cells, row, average, kept, 0.0, 0.0, 0.0, 0.0, 0, 0)

    def _rows(self) -> Iterator[int]:
        return iter(range(_HEAD.size, len(self._cells), _SEED.size))

    def _row(self, seed_idx: int) -> int:
        """Where the row of a seed begins; 0 if there is none."""
        seeds = self._seeds
        if seeds is None:
            at = _HEAD.size + seed_idx * _SEED.size
            return at if at < len(self._cells) else 0
        return _HEAD.size + seeds.index(seed_idx) * _SEED.size if seed_idx in seeds else 0

    def _place(self, seed_idx: int) -> int:
        """Where the row of a seed begins; an empty one is made if there is none."""
        at = self._row(seed_idx)
        if at:
            return at
        cells, known = self._cells, (len(self._cells) - _HEAD.size) // _SEED.size
        seeds = tuple(range(known)) if self._seeds is None else self._seeds
        before = sum([seed < seed_idx for seed in seeds])
        at = _HEAD.size + before * _SEED.size
        self._cells = bytearray(bytes(cells[:at]) + bytes(_SEED.size) + bytes(cells[at:]))
        seeds = (*seeds[:before], seed_idx, *seeds[before:])
        self._seeds = None if seeds[-1] == known else seeds
        return at

    @override
    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as JSON data; a row per seed."""
        cells = self._cells
        return {
            "layer": list(_HEAD.unpack_from(cells)),
            "seeds": list(range(sum(1 for _ in self._rows())))
            if self._seeds is None
            else list(self._seeds),
            "rows": [list(_SEED.unpack_from(cells, row)) for row in self._rows()],
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was asked.

        Raises:
            ConfigError: if ``state`` is another strategy's; nothing is taken over then.
        """
        try:
            rows: Sequence[Sequence[float]] = state["rows"]
            seeds = tuple([int(seed) for seed in state["seeds"]])
            numbers = [*state["layer"], *(number for row in rows for number in row)]
            cells = _HEAD.pack(*state["layer"]) + b"".join([_SEED.pack(*row) for row in rows])
            sound = all(map(isfinite, numbers)) and len(seeds) == len(rows)
            sound = sound and all(one < two for one, two in zip((-1, *seeds), seeds, strict=False))
        except (KeyError, TypeError, ValueError, OverflowError, StructError):
            sound = False
        if not sound:
            raise ConfigError(
                f"state has {', '.join(state) or 'nothing'}; it must have layer, seeds and rows, "
                "as state_dict() gave them; the state belongs to another strategy"
            )
        self._cells = bytearray(cells)
        self._seeds = None if seeds == tuple(range(len(seeds))) and seeds else seeds


def _followed(run: Run, push: float, off: float) -> Run:
    """The run after an outcome ``off`` the mean that speaks for the change by ``push``."""
    evidence, mean, length = run
    evidence += push
    if evidence <= 0:
        return _NONE
    length += 1
    return evidence, _single(mean + (off - mean) / length), min(length, _WORD)


def _single(number: float) -> float:
    return max(-_SINGLE, min(number, _SINGLE))


def _variance(m2: float, total: float, seen: int, surprises: int) -> float:
    # One degree of freedom of all rewards' variance: something to go by before seeds repeat.
    return (m2 + (total / (seen - 1) if seen > 1 else 0.0)) / (surprises + 1)


def _usable(variance: float, centre: float) -> float:
    noise = sqrt(variance) if variance > 0 else 0.0
    return noise if noise > _ROUNDING * abs(centre) else _NO_SPREAD
