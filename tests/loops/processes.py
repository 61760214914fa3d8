"""Processes: replicas and shards of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import esper
from tests.loops.models import LayerDrop
from tests.loops.situations import refused, works
from tests.loops.trial import HOLDOUT, Engine, Net, Trial, adam, loss_fn


@contextmanager
def group(backend: str, store: Any, *, processes: int) -> Iterator[None]:
    """A process group; of more than one process, one that only pretends."""
    distributed.init_process_group(backend, store=store, rank=0, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def alone() -> Any:
    return group("gloo", HashStore(), processes=1)


def check_inside(tamiyo: Engine) -> None:
    """The replica's own module can be made plain; the replica only while there is a group."""
    tamiyo.plain = False
    if tamiyo.tamiyo is not None:
        batch, model = HOLDOUT[0], tamiyo.model.eval()
        plain = esper.harden(model.get_submodule("module"))
        with torch.no_grad():
            assert torch.equal(loss_fn(plain, batch), loss_fn(model, batch))


@works
def one_process(trial: Trial) -> None:
    """`torch.distributed` is initialised with a world of one process."""
    with alone():
        trial.train(Net())


@works
def replica_in_one_process(trial: Trial) -> None:
    """The model is a `DistributedDataParallel` in a world of one process."""
    with alone():
        check_inside(trial.train(DistributedDataParallel(Net(nn.BatchNorm1d(8))), ["module.fc1"]))


@works
def replica_with_unused_parameters(trial: Trial) -> None:
    """A `DistributedDataParallel` looks for unused parameters, and some passes skip a layer."""
    with alone():
        model = DistributedDataParallel(LayerDrop(), find_unused_parameters=True)
        check_inside(trial.train(model, ["module.between.0"], growth={"probe_every": 1}))


@works
def wrapped_before_the_replica(trial: Trial) -> None:
    """`DistributedDataParallel` is put around the wrapped model, in a world of one process."""
    with alone():
        check_inside(trial.train(DistributedDataParallel(trial.wrap(Net())), []))


@refused(
    "torch.distributed runs 2 processes, and each would grow its replica of the model by "
    "itself, so that they drift apart; grow in one process, and train esper.harden(model) in "
    "several"
)
def two_processes(trial: Trial) -> None:
    """`torch.distributed` is initialised with two processes, each of which grows its replica."""
    with group("fake", FakeStore(), processes=2):
        model = trial.wrap(Net())
        trial.tamiyo(DistributedDataParallel(model), adam(model))


@refused(
    "layer 'fc1' is sharded by FSDP, so this process holds a part of its parameters, and a "
    "kernel stands beside the whole layer; grow the model without fully_shard or "
    "FullyShardedDataParallel, in one process"
)
def sharded_after_wrapping(trial: Trial) -> None:
    """The wrapped model is sharded by `fully_shard`, FSDP's second version."""
    with alone():
        model = trial.wrap(Net())
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        trial.tamiyo(model, adam(model))


@refused(
    "layer 'fc1' is sharded by FSDP, so this process holds a part of its parameters, and a "
    "kernel stands beside the whole layer; grow the model without fully_shard or "
    "FullyShardedDataParallel, in one process"
)
def sharded_before_wrapping(trial: Trial) -> None:
    """A layer of a model that `fully_shard` has sharded is wrapped."""
    with alone():
        model = Net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        trial.wrap(model)


@refused(
    "the model is sharded by FSDP, so this process holds a part of its parameters, and a "
    "kernel stands beside the whole layer; grow the model without fully_shard or "
    "FullyShardedDataParallel, in one process"
)
def flat_parameters(trial: Trial) -> None:
    """The wrapped model is in a `FullyShardedDataParallel`, FSDP's first version."""
    with alone():
        with pytest.warns(UserWarning, match="FSDP is switching to use `NO_SHARD`"):
            model = FullyShardedDataParallel(trial.wrap(Net()), device_id=torch.device("cpu"))
        trial.tamiyo(model, adam(model))
