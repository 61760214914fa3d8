"""Means and noise of a layer's seeds since the last change, in packed bytes.

31 bytes of the layer's own and 36 per seed, with Python's overhead 430 bytes for a layer of eight.
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
from esper.strategies.pooled.runs import Run, followed, shared_fall, single

_HEAD: Final = Struct("<dddHHHB")
"""Squared surprises, squares about the layer's mean, that mean; outcomes up to 1,000, outcomes
since the last restart; surprises, restarts."""

_SEED: Final = Struct("<dffffffBBH")
"""Mean, outcomes; evidence for a rise and for a fall; mean of the run of each; squares of the
falling one about its mean; length of each; kind."""

_BRIEF: Final = Struct("<df22xH")
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

_SCALED: Final = 100.0
"""Outcomes that a seed keeps at most when all rewards are rescaled."""

_NO_RUNS: Final = (0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
"""Evidence, means, squares and lengths of a row without runs."""

_OLD: Final = 9
"""Numbers of a row of 0.1.0."""

_NUMBERS: Final = list(range(256))

_BYTE, _WORD, _NO_SPREAD = 2**8 - 1, 2**16 - 1, inf


@final
class Beliefs(LayerKnowledge):
    """Mean and outcomes of every seed since its rewards last changed, and their noise.

    A two-sided CUSUM of each seed sums the distances of its outcomes from its mean, each clipped to
    two standard deviations. At 15 the seed restarts with the mean of the run that raised the alarm
    and at most 8 outcomes, since such a run looks more extreme than it is. If its mean was the best
    and it fell, or was not and it rose above the best, the others are in doubt too: each keeps at
    most 8 outcomes and the average of all means.

    Rewards may also shrink together, as they do while a network learns. So if the best seed fell
    and the spread of its outcomes fell by about the factor of its mean (3 nats of evidence, factors
    within e^0.5), all means are rescaled by it, and keep at most 100 outcomes each. A factor is
    relative to a reward of 0, so here, and here alone, a shift of all rewards would matter.

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
        mean, known, before = _BRIEF.unpack_from(cells, at)
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
        row = _SEED.unpack_from(cells, at)
        mean, known, rise, fall, rose, fell, squares, rising, falling, _ = row
        off = reward - mean
        noise, ready = self._count(reward, off * off * known / (known + 1) if known else None)
        if not known:
            _SEED.pack_into(cells, at, reward, 1.0, *_NO_RUNS, kind)
            return
        up, down = (rise, rose, rising), (fall, fell, falling)
        if ready and noise < _NO_SPREAD and self.pool.restarts:
            sure = min(known, MEMORY)
            push = max(-_CLIP, min(off / noise * sqrt(sure / (sure + 1)), _CLIP))
            up, down = followed(up, push - _DRIFT, off), followed(down, -push - _DRIFT, off)
            squares = single(squares + (off - fell) * (off - down[1])) if down[2] > 1 else 0.0
            if up[0] > _LIMIT or down[0] > _LIMIT:
                run = up if up[0] > _LIMIT else down
                if run is down and self._rescale(at, run, squares):
                    return
                fresh = mean + run[1], min(float(run[2]), _KEPT)
                self._restart(at, fresh, kind, run is up)
                return
        known += 1
        step = off / min(known, MEMORY)
        # Runs are relative to the mean, which moves.
        runs = up[0], down[0], single(up[1] - step), single(down[1] - step), squares
        _SEED.pack_into(cells, at, mean + step, known, *runs, up[2], down[2], kind)

    def _count(self, reward: float, surprise: float | None) -> tuple[float, bool]:
        """Add a reward, and its squared surprise, to the layer's spread and noise.

        Returns:
            The noise before, and whether it was known well enough to test a surprise.
        """
        m2, total, centre, seen, since, surprises, restarts = _HEAD.unpack_from(self._cells)
        noise, ready = self._noise(m2, total, centre, seen, surprises), surprises >= _READY
        if seen < MEMORY:
            seen += 1
        else:
            total -= total / MEMORY
        off = reward - centre
        centre += off / seen
        total += off * (reward - centre)
        if surprise is not None:
            if surprises < MEMORY:
                surprises += 1
            else:
                m2 -= m2 / MEMORY
            m2 += surprise
        since = min(since + 1, _WORD)
        _HEAD.pack_into(self._cells, 0, m2, total, centre, seen, since, surprises, restarts)
        return noise, ready

    @override
    def forget(self, seed_idx: int) -> None:
        if at := self._row(seed_idx):
            # Knowledge of the kind stays true; that of the seed does not.
            mean, known, kind = self._read(at)
            if known and kind:
                self.pool.retire(kind, mean, known)
            _SEED.pack_into(self._cells, at, 0.0, 0.0, *_NO_RUNS, 0)

    def _restart(self, at: int, fresh: tuple[float, float], kind: int, rose: bool) -> None:
        cells, (mean, known) = self._cells, fresh
        head = _HEAD.unpack_from(cells)
        _HEAD.pack_into(cells, 0, *head[:4], 0, head[5], min(head[6] + 1, _BYTE))
        rows = {row: self._read(row) for row in self._rows()}
        means = {row: one[0] for row, one in rows.items() if one[1]}
        best = max(means, key=means.__getitem__)
        in_doubt = not rose if at == best else mean > means[best]
        _SEED.pack_into(cells, at, mean, known, *_NO_RUNS, kind)
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
                _SEED.pack_into(cells, row, average, kept, *_NO_RUNS, other)

    def _rescale(self, at: int, run: Run, squares: float) -> bool:
        """Rescale all seeds, if this one is the best and all rewards share its fall; true if so."""
        cells = self._cells
        m2, *head, surprises, restarts = _HEAD.unpack_from(cells)
        rows = {row: self._read(row) for row in self._rows()}
        mean, known, _ = rows[at]
        if mean < max(one[0] for one in rows.values() if one[1]):
            return False
        fall = shared_fall(run, squares, mean=mean, known=known, m2=m2, surprises=surprises)
        if fall is None:
            return False
        head[-1] = 0
        _HEAD.pack_into(cells, 0, fall.variance * surprises, *head, surprises, restarts)
        for row, (before, outcomes, kind) in rows.items():
            if outcomes:
                after, kept = (
                    fall.after + (before - fall.before) * fall.factor,
                    min(outcomes, _SCALED),
                )
                if kind:
                    self.pool.leave(kind, before, outcomes)
                    self.pool.enter(kind, after, kept)
                _SEED.pack_into(cells, row, after, kept, *_NO_RUNS, kind)
        return True

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
            rows: Sequence[Sequence[float]] = [
                # A row of 0.1.0 has no squares.
                [*row[:6], 0.0, *row[6:]] if len(row) == _OLD else row
                for row in state["rows"]
            ]
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
    return Struct("<" + "df24x" * seeds)
