"""Processes: replicas and shards of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import esper
from tests.loops.models import LayerDrop
from tests.loops.situations import refused, works
from tests.loops.trial import HOLDOUT, Engine, Net, Trial, adam, loss_fn


@contextmanager
def alone() -> Iterator[None]:
    """A process group of one process."""
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


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
    "layer 'fc1' is sharded by FSDP, so this process holds a part of its parameters, and a "
    "kernel stands beside the whole layer; train the model with DistributedDataParallel, or in "
    "one process"
)
def sharded_after_wrapping(trial: Trial) -> None:
    """The wrapped model is sharded by `fully_shard`, FSDP's second version."""
    with alone():
        model = trial.wrap(Net())
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        trial.tamiyo(model, adam(model))


@refused(
    "layer 'fc1' is sharded by FSDP, so this process holds a part of its parameters, and a "
    "kernel stands beside the whole layer; train the model with DistributedDataParallel, or in "
    "one process"
)
def sharded_before_wrapping(trial: Trial) -> None:
    """A layer of a model that `fully_shard` has sharded is wrapped."""
    with alone():
        model = Net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        trial.wrap(model)


@refused(
    "the model is sharded by FSDP, so this process holds a part of its parameters, and a "
    "kernel stands beside the whole layer; train the model with DistributedDataParallel, or in "
    "one process"
)
def flat_parameters(trial: Trial) -> None:
    """The wrapped model is in a `FullyShardedDataParallel`, FSDP's first version."""
    with alone():
        with pytest.warns(UserWarning, match="FSDP is switching to use `NO_SHARD`"):
            model = FullyShardedDataParallel(trial.wrap(Net()), device_id=torch.device("cpu"))
        trial.tamiyo(model, adam(model))
