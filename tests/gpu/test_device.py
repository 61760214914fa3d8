"""Growth on a GPU: the loop, the laws that hold bit for bit, precision, compiling, memory."""

import gc
from collections.abc import Iterator
from io import BytesIO

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import esper
from tests.gpu.training import Training, random_state
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
    assert {tensor.device.type for tensor in training.model.state_dict().values()
            if isinstance(tensor, torch.Tensor)} == {device}  # fmt: skip
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
