"""Means and noise of a layer's seeds since the last change, in packed bytes.

31 bytes of the layer's own and 32 per seed, with Python's overhead 400 bytes for a layer of eight.
Numbers that are compared with a threshold are in single precision, means in double; runs are kept
as distances from a mean, so that a shift of all rewards costs no precision.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import inf, isfinite, sqrt
from struct import Struct
from struct import error as StructError
from typing import Any, Final, final

from typing_extensions import override

from esper.contracts.errors import ConfigError
from esper.contracts.selection import Decision, SelectionContext
from esper.records.layer import LayerKnowledge
from esper.records.layer_sums import ROUNDING
from esper.strategies.pooled.pooling import MEMORY, Pool, Prior, kind_of

_HEAD: Final = Struct("<dddHHHB")
"""Squared surprises, squares about the layer's mean, that mean; outcomes up to 1,000, outcomes
since the last restart; surprises, restarts."""

_SEED: Final = Struct("<dfffffBBH")
"""Mean, outcomes; evidence for a rise and for a fall; mean of the run of each, its length; kind."""

_BRIEF: Final = Struct("<df18xH")
"""Mean, outcomes and kind alone, as every choice reads them."""

_READY: Final = 5
"""Surprises that are needed before one is tested."""

_DRIFT: Final = 0.25
"""Half of the smallest shift that is detected, in standard deviations."""

_LIMIT: Final = 15.0
"""Threshold of an alarm: 7.5 nats for a shift of half a standard deviation."""

_CLIP: Final = 2.0
"""Limit of a surprise, in standard deviations, so that one outlier raises no alarm."""

_KEPT: Final = 8.0
"""Outcomes that a seed keeps at most through a restart."""

_BORROWED: Final = 30.0
"""Degrees of freedom of the pool's noise in a layer's."""

_NUMBERS: Final = list(range(256))

_BYTE, _WORD, _SINGLE, _NO_SPREAD = 2**8 - 1, 2**16 - 1, 3e38, inf


Run = tuple[float, float, int]
"""Run of a seed's outcomes that is evidence of a change in one direction: the evidence, >= 0; its
mean reward, relative to the seed's mean; its length, up to 255."""

_NONE: Final[Run] = (0.0, 0.0, 0)


@final
class Beliefs(LayerKnowledge):
    """Mean and outcomes of every seed since its rewards last changed, and their noise.

    A two-sided CUSUM of each seed sums the distances of its outcomes from its mean, each clipped to
    two standard deviations. At 15 the seed restarts with the mean of the run that raised the alarm
    and at most 8 outcomes, since such a run looks more extreme than it is. If its mean was the best
    and it fell, or was not and it rose above the best, the others are in doubt too: each keeps at
    most 8 outcomes and the average of all means.

    The noise is the standard deviation within seeds, of the last 1000 outcomes or so, with one
    degree of freedom of the standard deviation of all; where layers share kinds, the noise of the
    whole pool counts for another thirty.

    Args:
        restarts: Seeds restart after a change; without, they keep all outcomes.

    Attributes:
        pool: Model that the layers of a history share.

    Source:
        Page (1954), Continuous Inspection Schemes, Biometrika 41 (CUSUM); Liu, Lee & Shroff (2018),
        A Change-Detection Based Framework for Piecewise-Stationary Multi-Armed Bandits, algorithms
        1 and 2.

    Example:
        Seed 0 earns 2 and 0 in turn, seed 1 a half of that: squares of 25 about the means, with 38
        degrees of freedom, and a variance of 0.705 of all. Then seed 1 earns 4 and restarts at
        the 9th. Its mean had become the best before, so seed 0 is not in doubt.

        >>> learned = Beliefs()
        >>> for reward in (2.0, 0.0) * 10:
        ...     learned.learn(0, reward, None)
        ...     learned.learn(1, reward / 2, None)
        >>> learned.means(), round(learned.noise(), 3)  # sqrt((25 + 0.705) / 39)
        ({0: (1.0, 20.0), 1: (0.5, 20.0)}, 0.812)
        >>> for reward in (4.0,) * 9:
        ...     learned.learn(1, reward, None)
        >>> {seed: (round(mean, 3), count) for seed, (mean, count) in learned.means().items()}
        {0: (1.0, 20.0), 1: (4.0, 8.0)}
    """

    __slots__ = ("_cells", "_seeds", "pool")

    def __init__(self, *, restarts: bool = True) -> None:
        self.pool = Pool(restarts=restarts)
        self.pool.members.append(self)
        self._cells = bytearray(_HEAD.size)
        self._seeds: tuple[int, ...] | None = ()
        """The seeds that rows belong to, in order; ``None``: 0, 1, 2 and so on."""

    @override
    def join(self, other: LayerKnowledge) -> None:
        if isinstance(other, Beliefs):
            self.pool = other.pool
            self.pool.members.append(self)

    @property
    def restarts(self) -> int:
        """Number of restarts, up to 255."""
        restarts: int = _HEAD.unpack_from(self._cells)[6]
        return restarts

    @property
    def since(self) -> int:
        """Outcomes in the layer since the last restart, or ever, up to 65,535."""
        since: int = _HEAD.unpack_from(self._cells)[4]
        return since

    def outcomes(self, seed_idx: int) -> int:
        """Outcomes of one seed since its last restart."""
        return int(self._read(self._row(seed_idx))[1])

    def columns(self, seeds: Sequence[int]) -> tuple[Sequence[float], Sequence[float]] | None:
        """Means and outcomes, if ``seeds`` are 0, 1, 2... and exactly those that have outcomes."""
        if self._seeds is not None or list(seeds) != _NUMBERS[: len(seeds)]:
            return None
        if len(self._cells) != _HEAD.size + len(seeds) * _SEED.size:
            return None
        flat = _columns_of(len(seeds)).unpack_from(self._cells, _HEAD.size)
        counts = flat[1::2]
        return (flat[::2], counts) if all(counts) else None

    def rows(self) -> dict[int, tuple[float, float, int]]:
        """Mean reward, outcomes and kind of every seed that has outcomes."""
        rows = _BRIEF.iter_unpack(memoryview(self._cells)[_HEAD.size :])
        numbered = enumerate(rows) if self._seeds is None else zip(self._seeds, rows, strict=True)
        return {seed: row for seed, row in numbered if row[1]}

    def means(self) -> dict[int, tuple[float, float]]:
        """Mean reward and outcomes of every seed that has outcomes."""
        return {seed: (mean, known) for seed, (mean, known, _) in self.rows().items()}

    def cells(self) -> list[tuple[int, float, float]]:
        """Kind, mean and outcomes of every seed that has a kind and outcomes."""
        return [(kind, mean, known) for mean, known, kind in self.rows().values() if kind]

    def prior(self, seed_idx: int, kind: str) -> Prior | None:
        """Prior of a seed of that kind from other layers; ``None`` if they do not know it."""
        mean, known, number = self._read(self._row(seed_idx))
        if number:
            return self.pool.prior(number, mean, known)
        number = self.pool.known(kind)  # its own outcomes are not in the pool, then
        return self.pool.prior(number, 0.0, 0.0) if number else None

    def noise(self) -> float:
        """Standard deviation of a reward about its seed's mean; inf if rewards do not differ."""
        m2, total, centre, seen, _, surprises, _ = _HEAD.unpack_from(self._cells)
        return self._noise(m2, total, centre, seen, surprises)

    @override
    def learn(self, seed_idx: int, reward: float, decision: Decision | None) -> None:
        kind = "" if decision is None else kind_of(decision.layer_type, decision.blueprint)
        self.take(seed_idx, kind, reward)

    @override
    def learn_unlogged(
        self, seed_idx: int, reward: float, blueprint: str, context: SelectionContext
    ) -> None:
        self.take(seed_idx, kind_of(context.layer_type, blueprint), reward)

    def take(self, seed_idx: int, kind: str, reward: float) -> None:
        """Add an outcome of a seed under ``kind``; empty if it is unknown."""
        at, cells, pool = self._place(seed_idx), self._cells, self.pool
        mean, known, _, _, _, _, _, _, before = _SEED.unpack_from(cells, at)
        number = before or pool.number(kind)
        if not number:
            self._take(at, reward, 0)
            return
        if known and not before:  # its outcomes before the kind was known
            pool.enter(number, mean, known)
        prior = pool.prior(number, mean, known)
        weight = known + prior.weight if prior else known
        shift = (prior.mean - mean) * prior.weight / weight if prior else 0.0
        pool.count(reward, mean + shift, weight)
        if known:
            pool.leave(number, mean, known)
        self._take(at, reward, number)
        mean, known, _ = self._read(at)
        pool.enter(number, mean, known)
        pool.settle()

    def _take(self, at: int, reward: float, kind: int) -> None:
        cells = self._cells
        m2, total, centre, seen, since, surprises, restarts = _HEAD.unpack_from(cells)
        mean, known, rise, fall, rose, fell, rising, falling, _ = _SEED.unpack_from(cells, at)
        noise = self._noise(m2, total, centre, seen, surprises)
        ready = surprises >= _READY
        if seen < MEMORY:
            seen += 1
        else:
            total -= total / MEMORY
        off = reward - centre
        centre += off / seen
        total += off * (reward - centre)
        off = reward - mean
        if known:
            if surprises < MEMORY:
                surprises += 1
            else:
                m2 -= m2 / MEMORY
            m2 += off * off * known / (known + 1)
        since = min(since + 1, _WORD)
        _HEAD.pack_into(cells, 0, m2, total, centre, seen, since, surprises, restarts)
        if not known:
            _SEED.pack_into(cells, at, reward, 1.0, 0.0, 0.0, 0.0, 0.0, 0, 0, kind)
            return
        up, down = (rise, rose, rising), (fall, fell, falling)
        if ready and noise < _NO_SPREAD and self.pool.restarts:
            sure = min(known, MEMORY)
            push = max(-_CLIP, min(off / noise * sqrt(sure / (sure + 1)), _CLIP))
            up, down = _followed(up, push - _DRIFT, off), _followed(down, -push - _DRIFT, off)
            if up[0] > _LIMIT or down[0] > _LIMIT:
                run = up if up[0] > _LIMIT else down
                fresh = mean + run[1], min(float(run[2]), _KEPT)
                self._restart(at, fresh, kind, run is up)
                return
        known += 1
        step = off / min(known, MEMORY)
        # Runs are relative to the mean, which moves.
        rose, fell = _single(up[1] - step), _single(down[1] - step)
        mean += step
        _SEED.pack_into(cells, at, mean, known, up[0], down[0], rose, fell, up[2], down[2], kind)

    @override
    def forget(self, seed_idx: int) -> None:
        if at := self._row(seed_idx):
            # Knowledge of the kind stays true; that of the seed does not.
            mean, known, kind = self._read(at)
            if known and kind:
                self.pool.retire(kind, mean, known)
            _SEED.pack_into(self._cells, at, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0)

    def _restart(self, at: int, fresh: tuple[float, float], kind: int, rose: bool) -> None:
        cells, (mean, known) = self._cells, fresh
        head = _HEAD.unpack_from(cells)
        _HEAD.pack_into(cells, 0, *head[:4], 0, head[5], min(head[6] + 1, _BYTE))
        rows = {row: self._read(row) for row in self._rows()}
        means = {row: one[0] for row, one in rows.items() if one[1]}
        best = max(means, key=means.__getitem__)
        in_doubt = not rose if at == best else mean > means[best]
        _SEED.pack_into(cells, at, mean, known, 0.0, 0.0, 0.0, 0.0, 0, 0, kind)
        if not in_doubt:
            return
        means[at] = mean
        average = mean + sum([other - mean for other in means.values()]) / len(means)
        for row in means:
            if row != at:
                before, outcomes, other = rows[row]
                kept = min(outcomes, _KEPT)
                if other:
                    self.pool.leave(other, before, outcomes)
                    self.pool.enter(other, average, kept)
                _SEED.pack_into(cells, row, average, kept, 0.0, 0.0, 0.0, 0.0, 0, 0, other)

    def _noise(self, m2: float, total: float, centre: float, seen: int, surprises: int) -> float:
        # One degree of freedom of all rewards' variance: a scale before any seed repeats.
        m2 += total / (seen - 1) if seen > 1 else 0.0
        freedom = surprises + 1.0
        if self.pool.shares:
            m2 += _BORROWED * self.pool.variance()
            freedom = surprises + _BORROWED + (seen > 1)
        noise = sqrt(m2 / freedom) if m2 > 0 else 0.0
        return noise if noise > ROUNDING * abs(centre) else _NO_SPREAD

    def _rows(self) -> range:
        return range(_HEAD.size, len(self._cells), _SEED.size)

    def _read(self, at: int) -> tuple[float, float, int]:
        return _BRIEF.unpack_from(self._cells, at) if at else (0.0, 0.0, 0)

    def _row(self, seed_idx: int) -> int:
        """Offset of a seed's row; 0 if there is none."""
        seeds = self._seeds
        if seeds is None:
            at = _HEAD.size + seed_idx * _SEED.size
            return at if at < len(self._cells) else 0
        return _HEAD.size + seeds.index(seed_idx) * _SEED.size if seed_idx in seeds else 0

    def _place(self, seed_idx: int) -> int:
        """Offset of a seed's row; an empty one is made if there is none."""
        if at := self._row(seed_idx):
            return at
        cells, known = self._cells, len(self._rows())
        seeds = tuple(range(known)) if self._seeds is None else self._seeds
        before = sum([seed < seed_idx for seed in seeds])
        at = _HEAD.size + before * _SEED.size
        self._cells = bytearray(bytes(cells[:at]) + bytes(_SEED.size) + bytes(cells[at:]))
        seeds = (*seeds[:before], seed_idx, *seeds[before:])
        self._seeds = None if seeds[-1] == known else seeds
        return at

    @override
    def state_dict(self) -> dict[str, Any]:
        cells, rows = self._cells, self._rows()
        return {
            "layer": list(_HEAD.unpack_from(cells)),
            "seeds": list(range(len(rows)) if self._seeds is None else self._seeds),
            "rows": [list(_SEED.unpack_from(cells, row)) for row in rows],
            "pool": self.pool.state_dict(),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            rows: Sequence[Sequence[float]] = state["rows"]
            seeds = tuple([int(seed) for seed in state["seeds"]])
            numbers = [*state["layer"], *(number for row in rows for number in row)]
            cells = _HEAD.pack(*state["layer"]) + b"".join([_SEED.pack(*row) for row in rows])
            sound = all(map(isfinite, numbers)) and len(seeds) == len(rows)
            sound = sound and all(one < two for one, two in zip((-1, *seeds), seeds, strict=False))
            if sound:
                self.pool.load_state_dict(state["pool"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, StructError):
            sound = False
        if not sound:
            raise ConfigError(
                f"state has {', '.join(state) or 'nothing'}; it must have layer, seeds, rows and "
                "pool, as state_dict() gave them; the state belongs to another strategy"
            )
        self._cells = bytearray(cells)
        self._seeds = None if seeds == tuple(range(len(seeds))) and seeds else seeds


@lru_cache(maxsize=64)
def _columns_of(seeds: int) -> Struct:
    """Struct that reads mean and outcomes of every row at once."""
    return Struct("<" + "df20x" * seeds)


def _followed(run: Run, push: float, off: float) -> Run:
    """Run after an outcome ``off`` the mean, which adds ``push`` to the evidence."""
    evidence, mean, length = run
    evidence += push
    if evidence <= 0:
        return _NONE
    length = min(length + 1, _BYTE)
    return evidence, _single(mean + (off - mean) / length), length


def _single(number: float) -> float:
    return max(-_SINGLE, min(number, _SINGLE))
