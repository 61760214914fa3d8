"""Growth on a GPU: the loop, the laws that hold bit for bit, precision, compiling, memory."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.adapters.switching import disabled
from esper.services.tamiyo.settings import config_from
from tests.gpu.training import Training, random_state
from tests.loops.trial import HOLDOUT, SOON, TRAIN, loss_fn
from tests.unit.adapters import test_adapt as adapting
from tests.unit.services.small_run import host as small_host
from tests.unit.services.small_run import same, teacher

pytestmark = [pytest.mark.gpu, pytest.mark.trains]
FAILED = "failed by the loop"


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product on CUDA
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(before)


def grew(training: Training) -> bool:
    """Whether kernels were kept, and no graft ended because of the training around it."""
    ends = training.facts("graft")
    assert not [end["why"] for end in ends if FAILED in end["why"]]
    return any(end["kept"] for end in ends)


def test_a_run_grows_where_its_host_is(device: str) -> None:
    training = Training(device).run()
    assert grew(training)
    tensors = [*training.model.parameters(), *training.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert training.losses[-1] < training.losses[0]
    inputs = teacher(32, seed=3)[0].to(device)
    outputs = training.model.eval()(inputs)
    assert torch.equal(esper.harden(training.model).eval()(inputs), outputs)


def test_the_same_seed_gives_the_same_log_and_the_same_bits(device: str) -> None:
    one, other = Training(device).run(), Training(device).run()
    told = [[(e.op_id, e.data) for e in each.engine.events()] for each in (one, other)]
    assert told[0] == told[1]
    assert one.losses == other.losses
    assert same(dict(one.model.state_dict()), dict(other.model.state_dict()))


def test_until_a_kernel_is_blended_in_the_host_is_its_control_bit_for_bit(device: str) -> None:
    control, grown = Training(device, grown=False), Training(device)
    for number in range(3):  # the first graft begins after the first epoch or the second
        states = []
        for training in (control, grown):
            torch.manual_seed(number)
            training.epoch(number)
            states.append(random_state(device))
        if grown.engine.grafts.blending:
            break
        assert control.losses == grown.losses
        assert same(states[0], states[1])
    assert grown.facts("decision")


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_run_is_taken_up_in_mid_graft_bit_for_bit(device: str, epochs: int) -> None:
    whole = Training(device, options={"run": "r"}).run()
    half = Training(device, options={"run": "r"}).run(epochs)
    file = BytesIO()
    torch.save(half.state(), file)
    file.seek(0)
    again = Training(device, options={"run": "r"})
    saved = torch.load(file, map_location=device, weights_only=True)
    saved["random"] = [state.cpu() for state in saved["random"]]
    again.load(saved)
    again.run(first=epochs)
    assert again.losses == whole.losses[len(half.losses) :]
    assert same(dict(again.model.state_dict()), dict(whole.model.state_dict()))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_mixed_precision_kernels_grow_in_float32(device: str, precision: torch.dtype) -> None:
    if device == "cpu" and precision is torch.float16:
        precision = torch.bfloat16  # what a CPU has
    training = Training(device, autocast=precision).run()
    assert grew(training)
    assert {parameter.dtype for parameter in training.model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning")
def test_a_compiled_model_grows_and_computes_what_it_does_uncompiled(device: str) -> None:
    torch.compiler.reset()
    backend = "inductor" if device == "cuda" else "aot_eager"  # inductor wants a compiler there
    training = Training(device, compiled=backend).run()
    assert grew(training)
    inputs = teacher(32, seed=3)[0].to(device)
    training.model.eval()
    torch.testing.assert_close(training.called(inputs), training.model(inputs))


def test_a_holdout_in_pinned_memory_is_read_without_a_trace(device: str) -> None:
    loader = DataLoader(TensorDataset(*teacher(96, seed=2)), batch_size=32,
                        pin_memory=device == "cuda")  # fmt: skip
    ours, theirs = Training(device, holdout=loader).run(), Training(device).run()
    assert ours.losses == theirs.losses
    told = [[data["holdout_loss"] for data in each.facts("epoch")] for each in (ours, theirs)]
    assert told[0] == told[1]


def test_a_seed_in_training_makes_the_processor_wait_for_nothing(device: str) -> None:
    training = Training(device, growth={"probe_every": 1000, "train_epochs": 9})
    training.run(3)
    assert {graft.state for graft in training.engine.grafts.grafts} == {"training"}
    batch = training.there(teacher(32, seed=1))
    training.model.train()
    for _ in range(3):
        training.optimizer.zero_grad()
        torch.autograd.backward(training.loss_fn(training.called, batch).mean())
        training.optimizer.step()
        with waiting_raises(device):
            training.engine.on_batch_end(batch)
    assert {graft.state for graft in training.engine.grafts.grafts} == {"training"}


@contextmanager
def waiting_raises(device: str) -> Iterator[None]:
    """Have calls that wait for the GPU raise; on a processor there is nothing to wait for."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_model_says_where_whatever_the_default_device_is(device: str) -> None:
    told = []
    for default in ("cpu", device):
        torch.set_default_device(default)
        try:
            training = Training(device).run()
        finally:
            torch.set_default_device(None)
        told.append(training.losses)
    assert told[0] == told[1]


def test_widths_grow_there(device: str) -> None:
    model = small_host(restless=False).to(device)
    train, held_out = (adapting.there(part, device) for part in (TRAIN, HOLDOUT))
    before = model.eval()(train[0][0])
    esper.wrap(model, widen="auto", example=train[0], loss_fn=loss_fn)
    assert torch.equal(model(train[0][0]), before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    config = config_from({"growth": {**SOON, "budget": 300}})
    tamiyo = esper.Tamiyo(model, optimizer, loss_fn=loss_fn, holdout=held_out, config=config)
    for epoch in range(10):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            torch.autograd.backward(loss_fn(model, batch).mean())
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    tamiyo.finish()
    assert any(event.data["kept"] for event in tamiyo.events() if event.kind == "graft")
    grown = model.eval()(train[0][0])
    torch.testing.assert_close(esper.harden(model).eval()(train[0][0]), grown)


def test_a_frozen_host_is_adapted_there_and_its_adapter_is_read_anywhere(
    device: str, tmp_path: Path
) -> None:
    model = adapting.host().to(device)
    ((inputs, _),) = adapting.there(adapting.batches(1, 5), device)
    before = model(inputs)
    adapting.adapted(model, device=device)
    esper.save_adapter(model, tmp_path)
    there_again, elsewhere = adapting.host().to(device), adapting.host()
    for host in (there_again, elsewhere):
        esper.load_adapter(host, tmp_path)
    assert torch.equal(there_again(inputs), model(inputs))
    torch.testing.assert_close(elsewhere(inputs.cpu()), model(inputs).cpu())
    torch.testing.assert_close(esper.merge(model)(inputs), model(inputs))
    with disabled(model):
        assert torch.equal(model(inputs), before)


def test_memory_does_not_grow_with_the_epochs_and_is_given_back(device: str) -> None:
    def held() -> int:
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        return sum(one.nbytes for one in gc.get_objects() if torch.is_tensor(one))

    before = held()
    training = Training(device).run(3)
    training.engine.finish()
    after_growth = held()
    training.run(8, first=3)
    assert held() - after_growth < 100_000
    del training
    assert held() - before < 100_000
