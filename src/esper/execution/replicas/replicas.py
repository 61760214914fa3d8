"""Replicas: what the processes of one training tell each other.

Every process runs the same steps in the same order; rank 0 decides. What could differ is exchanged:
decisions, initial weights, gradients of isolated kernels, held-out losses. A step that fails in one
process fails in all, and a process that is gone ends all.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, distributed, nn

from esper.contracts.errors import ConfigError, ReplicaError
from esper.execution.concealed import every_tensor
from esper.execution.replicas.drift import fingerprint, holdout_fingerprint

_AXES = 8
_FAILED = -1


@final
class Replicas:
    """The processes of ``torch.distributed``, or this one alone.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
        sharded: True if the processes hold different parts of the holdout.
    """

    def __init__(self) -> None:
        there = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if there else 0
        self.world = distributed.get_world_size() if there else 1
        self.sharded = False
        nccl_alone = there and str(distributed.get_backend()) == "nccl"
        self._device = torch.device("cuda" if nccl_alone else "cpu")

    @property
    def alone(self) -> bool:
        """True if there is one process."""
        return self.world == 1

    @property
    def leads(self) -> bool:
        """True in the process that decides."""
        return self.rank == 0

    # --- agreement --------------------------------------------------------------------------------

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Context in which every process does ``what``; if one fails, all do.

        Raises:
            ConfigError: where this process succeeded and another failed.
            ReplicaError: if a process is gone.
        """
        try:
            yield
        except Exception:
            self._status(failed=True)
            raise
        self._agree(what)

    def share(self, make: Callable[[], Any]) -> Any:
        """Value that rank 0 makes, JSON data, in every process; the others make nothing.

        Raises:
            ConfigError: where this process is another and rank 0 failed.
            ReplicaError: if a process is gone.
        """
        if self.alone:
            return make()
        made, data = None, b""
        if self.leads:
            try:
                made = make()
                data = json.dumps(made).encode()
            except Exception:
                self._broadcast(torch.tensor([_FAILED]))
                raise
        size = self._broadcast(torch.tensor([len(data)]))
        if size == _FAILED:
            raise ConfigError("rank 0 failed where it decides for all; its own message says why")
        buffer = torch.frombuffer(bytearray(data or bytes(int(size))), dtype=torch.uint8)
        received = self._broadcast(buffer) if size else buffer
        return made if self.leads else json.loads(bytes(received.tolist()))

    def equalise(self, module: nn.Module) -> None:
        """Give every process the tensors that a module has in rank 0."""
        for tensor in () if self.alone else every_tensor(module):
            with torch.no_grad():
                tensor.copy_(self._broadcast(tensor.detach().clone(), at=tensor.device))

    # --- numbers ----------------------------------------------------------------------------------

    def losses(self, make: Callable[[], Tensor]) -> Tensor:
        """Losses of all examples of the holdout, the last axis, in every process.

        They are rank 0's, or those of all in the order of ranks if the holdout is sharded.

        Raises:
            ConfigError: where this process succeeded and another failed.
            ReplicaError: if a process is gone.
        """
        if self.alone:
            return make()
        with self.together("the passes over the holdout"):
            mine = make()
        sizes = self._gather(torch.tensor([mine.shape[-1]]))
        parts = mine.new_zeros((*mine.shape[:-1], int(max(sizes))))
        parts[..., : mine.shape[-1]] = mine
        if not self.sharded:
            return self._broadcast(parts[..., : int(sizes[0])].contiguous(), at=mine.device)
        found = self._gather(parts, at=mine.device)
        return torch.cat([p[..., : int(n)] for p, n in zip(found, sizes, strict=True)], dim=-1)

    def mean(
        self, make: Callable[[], Sequence[Tensor | None] | None], like: Sequence[Tensor]
    ) -> Sequence[Tensor | None] | None:
        """Gradients, averaged over the processes that have any.

        Args:
            make: This process's gradients; ``None`` if its batch gives none.
            like: Tensors of the same shapes.

        Returns:
            ``None`` if no process has any; for one tensor, if no process has one for it.

        Raises:
            ConfigError: where this process succeeded and another failed.
            ReplicaError: if a process is gone.
        """
        if self.alone:
            return make()
        failure, mine = None, None
        try:
            mine = make()
        except Exception as error:  # noqa: BLE001 (raised again once the others know)
            failure = error
        given = list(mine) if mine is not None else [None] * len(like)
        # One message: gradients, which of them are there, whether any is, whether this one failed.
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(given, like, strict=True)]
        told = [*(g is not None for g in given), mine is not None, failure is not None]
        wide = torch.promote_types(torch.float32, like[0].dtype)
        flags = torch.tensor(told, dtype=wide, device=like[0].device)
        message = torch.cat([*(part.flatten().to(wide) for part in parts), flags])
        total = self._sum(message, at=message.device)
        if failure is not None:
            raise failure
        *there, reached, failed = total[-len(told) :].tolist()
        if failed:
            raise ConfigError(f"{int(failed)} other process(es) failed in the same pass")
        if not reached:
            return None
        sums = torch.split(total[: -len(told)], [part.numel() for part in parts])
        return [
            (one / reached).reshape(part.shape).to(part.dtype) if seen else None
            for one, part, seen in zip(sums, parts, there, strict=True)
        ]

    def rows(self, x_NF: Tensor) -> Tensor:
        """Rows of all processes, in the order of ranks; each may have another number of them."""
        if self.alone:
            return x_NF
        sizes = self._gather(torch.tensor([len(x_NF)]))
        padded = x_NF.new_zeros((int(max(sizes)), x_NF.shape[1]))
        padded[: len(x_NF)] = x_NF
        found = self._gather(padded, at=x_NF.device)
        return torch.cat([part[: int(n)] for part, n in zip(found, sizes, strict=True)])

    def own_or_lent(self, x: Tensor | None, like: Tensor) -> Tensor | None:
        """This process's tensor; where it has none, that of the first process that has one.

        Args:
            x: At most eight axes, in the type of ``like`` and at its place.
            like: Any tensor of that type.

        Returns:
            ``None`` if no process has one.
        """
        if self.alone:
            return x
        shape = [-1] if x is None else [x.dim(), *x.shape]
        told = torch.tensor([*shape, *[0] * (_AXES + 1 - len(shape))])
        shapes = [one.tolist() for one in self._gather(told)]
        have = [rank for rank, one in enumerate(shapes) if one[0] >= 0]
        if len(have) in {0, self.world}:
            return x
        count, *sizes = shapes[have[0]]
        given = like.new_empty(sizes[:count]) if x is None or self.rank != have[0] else x
        moved = given.contiguous().to(self._device)
        self._call(distributed.broadcast, moved, src=have[0])
        return moved.to(like.device) if x is None else x

    # --- guards -----------------------------------------------------------------------------------

    def inspect_holdout(self, holdout: Iterable[Any]) -> None:
        """Find out whether the processes hold different parts of the holdout."""
        if self.alone:
            return
        with self.together("reading the holdout"):
            mine = holdout_fingerprint(holdout)
        found = self._gather(torch.tensor([mine]))
        self.sharded = any(int(one) != int(found[0]) for one in found)

    def check_equal(self, model: nn.Module) -> None:
        """Compare all parameters, isolated kernels too.

        Raises:
            ReplicaError: in every process, if they differ in one.
        """
        if self.alone:
            return
        names, sums = fingerprint(model)
        weights = torch.arange(1, len(names) + 1, device=sums.device)
        mine = torch.tensor([len(names), int((sums * weights).sum())])
        found = [tuple(one.tolist()) for one in self._gather(mine)]
        if len(set(found)) == 1:
            return
        odd = [rank for rank, one in enumerate(found) if one != found[0]]
        if any(found[rank][0] != found[0][0] for rank in odd):
            counts = [count for count, _ in found]
            raise ReplicaError(
                f"the replicas have different parameters: {counts} by rank; build, wrap and load "
                "the model in the same way in every process"
            )
        rows = [row.to(sums.device) for row in self._gather(sums.cpu())]
        differs = torch.stack([row != rows[0] for row in rows]).any(dim=0)
        first = names[int(differs.nonzero()[0])]
        raise ReplicaError(
            f"the replicas drifted apart: {int(differs.sum())} of {len(names)} parameters, as "
            f"{first!r}, have other values on rank {', '.join(map(str, odd))} than on rank 0; "
            "train the model through DistributedDataParallel, or reduce all gradients, in every "
            "step and process, and start from equal weights"
        )

    # --- messages ---------------------------------------------------------------------------------

    def _status(self, *, failed: bool) -> list[int]:
        """Ranks that failed."""
        if self.alone:
            return []
        found = self._gather(torch.tensor([int(failed)]))
        return [rank for rank, one in enumerate(found) if int(one)]

    def _agree(self, what: str) -> None:
        failed = self._status(failed=False)
        if failed:
            ranks = ", ".join(map(str, failed))
            raise ConfigError(f"{what} failed on rank {ranks}; the message there says why")

    def _broadcast(self, tensor: Tensor, *, at: torch.device | None = None) -> Tensor:
        moved = tensor.to(self._device)
        self._call(distributed.broadcast, moved, src=0)
        return moved.to(at or "cpu")

    def _sum(self, tensor: Tensor, *, at: torch.device) -> Tensor:
        moved = tensor.to(self._device)
        self._call(distributed.all_reduce, moved)
        return moved.to(at)

    def _gather(self, tensor: Tensor, *, at: torch.device | None = None) -> list[Tensor]:
        moved = tensor.to(self._device).contiguous()
        found = [torch.empty_like(moved) for _ in range(self.world)]
        self._call(distributed.all_gather, found, moved)
        return [one.to(at or "cpu") for one in found]

    def _call(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, **kwargs)
        except RuntimeError as error:
            first_line = str(error).strip().partition("\n")[0]
            raise ReplicaError(
                f"rank {self.rank} cannot reach the other processes any more, so the run ends in "
                f"all: {first_line}. One of them ended or stalled; its own output says why. Start "
                "all again from the last checkpoint"
            ) from error


ALONE = Replicas.__new__(Replicas)
"""One process, whatever ``torch.distributed`` says: for passes that concern nobody else."""
ALONE.rank, ALONE.world, ALONE.sharded = 0, 1, False
