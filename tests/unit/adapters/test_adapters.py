"""Adapters of one host: saved, loaded, switched, merged, and read by peft."""

import json
import warnings
from copy import deepcopy
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError, LifecycleError, StoreError
from esper.contracts.seeds import SeedState
from esper.execution.kernel import count_parameters
from esper.tasks import TASKS
from tests.unit.adapters.test_adapt import adapted, batches, host, loss_fn

X = batches(1, 7)[0][0]


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)  # type: ignore[no-any-return]


@pytest.fixture
def model() -> nn.Module:
    made = host()
    adapted(made, budget=2.0)
    return made


def test_a_saved_adapter_comes_back_on_a_fresh_host(model: nn.Module, tmp_path: Path) -> None:
    esper.save_adapter(model, tmp_path / "adapter")
    fresh = host()
    assert esper.load_adapter(fresh, tmp_path / "adapter") == "default"
    assert torch.equal(outputs(fresh), outputs(model))
    assert not torch.equal(outputs(fresh), outputs(host()))


def test_a_file_is_little_more_than_its_parameters(tmp_path: Path) -> None:
    task = TASKS.create("transfer")
    model = task.host(0)
    optimizer, holdout = task.optimizer(model), [next(iter(task.train_batches(1, 0)))]
    tamiyo = esper.adapt(
        model, optimizer=optimizer, loss_fn=task.loss_fn, holdout=holdout, budget=1.0, every=1
    )
    tamiyo.on_batch_end(next(iter(task.train_batches(0, 0))))
    tamiyo.finish()
    assert 2400 < tamiyo.used <= 2592
    size = (esper.save_adapter(model, tmp_path) / "adapter.safetensors").stat().st_size
    assert size <= 1.1 * 4 * (tamiyo.used + 490)


def esper_layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, esper.KasminaLayer)]


def test_the_host_alone_is_what_it_was_bit_for_bit(model: nn.Module) -> None:
    on = outputs(model)
    with esper.disabled(model):
        assert torch.equal(outputs(model), outputs(host()))
    assert torch.equal(outputs(model), on)


def test_a_second_task_leaves_the_first_alone(model: nn.Module) -> None:
    first = outputs(model)
    adapted(model, steps=12, name="second", rate=3e-2)
    second = outputs(model)
    assert not torch.equal(first, second)
    assert esper.adapter_names(model) == ["second", "default"]
    esper.set_adapter(model, "default")
    assert torch.equal(outputs(model), first)
    esper.set_adapter(model, "second")
    assert torch.equal(outputs(model), second)
    with esper.disabled(model):
        assert torch.equal(outputs(model), outputs(host()))


def test_a_second_task_that_cannot_begin_leaves_the_first_on(model: nn.Module) -> None:
    first = outputs(model)
    with pytest.raises(ConfigError, match="holdout has no batches"):
        adapted(model, name="second", holdout=[])
    assert esper.adapter_names(model) == ["default"]
    assert torch.equal(outputs(model), first)


def test_two_saved_adapters_side_by_side(model: nn.Module, tmp_path: Path) -> None:
    first = outputs(model)
    esper.save_adapter(model, tmp_path / "one")
    adapted(model, steps=12, name="second", rate=3e-2)
    second = outputs(model)
    esper.save_adapter(model, tmp_path / "two")
    fresh = host()
    esper.load_adapter(fresh, tmp_path / "two")
    assert torch.equal(outputs(fresh), second)
    esper.load_adapter(fresh, tmp_path / "one", name="other")
    assert torch.equal(outputs(fresh), first)
    esper.set_adapter(fresh, "second")
    assert torch.equal(outputs(fresh), second)


def test_low_rank_kernels_merge_into_the_hosts_own_weights(model: nn.Module) -> None:
    merged = esper.merge(model)
    assert {name for name, _ in merged.named_parameters()} == {
        n for n, _ in host().named_parameters()
    }
    assert [type(m) for m in merged.modules()] == [type(m) for m in host().modules()]
    torch.testing.assert_close(outputs(merged), outputs(model))
    assert outputs(model).shape == (16, 3)


def test_other_kernels_stay_plain_modules_beside_their_layer() -> None:
    model = host()
    adapted(model, seeds=["bottleneck"], layers=["encoder.*"], budget=4.0)
    merged = esper.merge(model)
    torch.testing.assert_close(outputs(merged), outputs(model))
    assert not any("esper" in type(m).__module__ for m in merged.modules())


def test_a_scale_merges_too() -> None:
    model = host()
    adapted(model, seeds=["scale"], layers=["encoder.mix"], budget=4.0)
    merged = esper.merge(model)
    assert [type(m) for m in merged.modules()] == [type(m) for m in host().modules()]
    torch.testing.assert_close(outputs(merged), outputs(model))


def test_kernels_of_all_kinds_are_placed_saved_and_merged(tmp_path: Path) -> None:
    model = host()
    kinds = ["lora", "bias", "scale", "bottleneck"]
    tamiyo = adapted(model, seeds=kinds, budget=3.0, steps=20, rate=3e-2)
    grown = [r["recipe"]["blueprint"] for la in esper_layers(model) for _, r in la.absorbed]
    assert {"lora", "bias", "scale"} <= set(grown)
    assert len(grown) > len(esper_layers(model))  # several beside one layer
    assert tamiyo.used <= tamiyo.budget == 132
    fresh = host()
    esper.load_adapter(fresh, esper.save_adapter(model, tmp_path))
    assert torch.equal(outputs(fresh), outputs(model))
    torch.testing.assert_close(outputs(esper.merge(model)), outputs(model))


@pytest.mark.parametrize("kinds", [["bias"], ["bias", "scale"], ["lora", "bias"]])
def test_linear_kinds_merge_into_the_hosts_own_weights(kinds: list[str]) -> None:
    model = host()
    tamiyo = adapted(model, seeds=kinds, budget=44, steps=20, rate=3e-2)
    assert tamiyo.used > 20
    merged = esper.merge(model)
    assert [type(m) for m in merged.modules()] == [type(m) for m in host().modules()]
    torch.testing.assert_close(outputs(merged), outputs(model))
    assert not torch.allclose(outputs(merged), outputs(host()), atol=1e-3)


def test_an_offset_beside_a_layer_without_bias_stays_a_module() -> None:
    model = host()
    model.get_submodule("encoder.mix").register_parameter("bias", None)
    adapted(model, layers=["encoder.mix"], seeds=["bias"], budget=8)
    merged = esper.merge(model)
    torch.testing.assert_close(outputs(merged), outputs(model))
    assert not isinstance(merged.get_submodule("encoder.mix"), nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_adapter_keeps_the_digits_of_its_type(dtype: torch.dtype, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4)]
        return nn.Sequential(*layers).to(dtype)

    def losses(model: nn.Module, batch: Any) -> Tensor:
        made: Tensor = (model(batch) - batch[:, :4]).square().mean(1)
        return made

    model, data = make(), list(torch.randn(8, 16, 8, dtype=dtype))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)  # type: ignore[index]
    given: dict[str, Any] = {"optimizer": optimizer, "loss_fn": losses, "holdout": data[6:]}
    tamiyo = esper.adapt(model, "all-linear", budget=1.0, every=3, **given)
    for batch in data[:6]:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tamiyo.on_batch_end(batch)
    tamiyo.finish()
    esper.save_adapter(model, tmp_path)
    again = make()
    esper.load_adapter(again, tmp_path)
    assert torch.equal(outputs(again, data[0]), outputs(model, data[0]))


def doubled_forward(layer: nn.Linear) -> None:
    plain = layer.forward
    vars(layer)["forward"] = lambda x: 2 * plain(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),  # type: ignore[no-untyped-call]
        lambda layer: prune.l1_unstructured(layer, "bias", 0.3),  # type: ignore[no-untyped-call]
        lambda layer: layer.register_forward_hook(lambda module, args, y: 2 * y),
        lambda layer: layer.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
        doubled_forward,
    ],
)
@pytest.mark.parametrize("seed", ["lora", "bias"])
def test_a_layer_that_is_more_than_its_weight_keeps_its_kernel_beside_it(
    change: Any, seed: str
) -> None:
    model = host()
    change(model.get_submodule("encoder.mix"))
    adapted(model, layers=["encoder.mix"], seeds=[seed], budget=32, rate=3e-2)
    assert count_parameters(model) > count_parameters(host())
    torch.testing.assert_close(outputs(esper.merge(model)), outputs(model))


class Tied(nn.Module):
    """Symbols (B, T) to logits (B, 3), of an embedding and two layers that read the same weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.symbols = nn.Embedding(6, 6)
        self.again, self.beside = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.symbols.weight
        self.head = nn.Linear(6, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(torch.tanh(self.beside(self.symbols((x > 0).long()))))
        return self.head(y.mean(1))  # type: ignore[no-any-return]


def test_a_weight_that_others_read_is_left_as_it_is() -> None:
    model = Tied()
    adapted(model, layers=["again", "beside"], seeds=["lora"], budget=24, rate=3e-2, steps=40)
    assert all(layer.fossils for layer in esper_layers(model))
    merged = esper.merge(model)
    torch.testing.assert_close(outputs(merged), outputs(model))
    assert isinstance(merged.get_submodule("beside"), nn.Linear)
    assert not isinstance(merged.get_submodule("again"), nn.Linear)


def test_peft_loads_an_exported_adapter(tmp_path: Path) -> None:
    model = host()
    adapted(model, budget=58)
    folder = esper.export_lora(model, tmp_path / "lora")
    ranks = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert ranks == {
        la.name: sum(len(k.down.weight) for k in la.fossils) for la in esper_layers(model)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of a model without a config
        loaded = PeftModel.from_pretrained(host(), str(folder))
    torch.testing.assert_close(outputs(loaded), outputs(model))


def test_only_low_rank_is_exported(tmp_path: Path) -> None:
    model = host()
    with pytest.raises(ConfigError, match="has no kernels to export"):
        esper.export_lora(model, tmp_path)
    adapted(model, seeds=["bottleneck"], layers=["encoder.*"], budget=4.0)
    with pytest.raises(ConfigError, match="kernel of blueprint 'bottleneck', and LoRA is of low"):
        esper.export_lora(model, tmp_path)


def test_trainable_parameters_are_printed(
    model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    esper.print_trainable_parameters(model)
    grown = sum(layer.grown_parameters for layer in esper_layers(model))
    assert capsys.readouterr().out.startswith(
        f"trainable params: {grown + 21:,} ({grown:,} in kernels, 21 in the head) || all params: "
        f"{count_parameters(model):,} || trainable%: "
    )


def edit(place: Path, **fields: Any) -> None:
    data = json.loads((place / "adapter.json").read_text())
    del data["checksum"]
    data |= fields
    content = json.dumps(data, sort_keys=True).encode()
    content += (place / "adapter.safetensors").read_bytes()
    seal = blake2b(content, digest_size=16).hexdigest()
    (place / "adapter.json").write_text(json.dumps({**data, "checksum": seal}))


def damage(place: Path) -> None:
    path = place / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def cut(place: Path) -> None:
    save_file({"values": torch.zeros(5)}, place / "adapter.safetensors")
    edit(place)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda p: (p / "adapter.json").unlink(), "has no adapter.json; give one that"),
        (lambda p: (p / "adapter.safetensors").unlink(), "has no adapter.safetensors"),
        (lambda p: (p / "adapter.json").write_text("{"), "is damaged"),
        (lambda p: (p / "adapter.json").write_text("{}"), "schema"),
        (lambda p: (p / "adapter.safetensors").write_bytes(b"x" * 99), "is damaged"),
        (cut, "is damaged: adapter.safetensors has 5 values"),
        (damage, "is damaged: its checksum is wrong"),
        (lambda p: edit(p, schema=99), "schema"),
        (lambda p: edit(p, head={"hat.weight": [3]}), "its head has 'hat.weight'"),
        (lambda p: edit(p, kernels=[{"layer": "down"}]), "is damaged"),
    ],
)
def test_a_damaged_folder_is_refused_and_the_host_left_alone(
    model: nn.Module, tmp_path: Path, harm: Any, says: str
) -> None:
    esper.save_adapter(model, tmp_path)
    harm(tmp_path)
    fresh = host()
    with pytest.raises(ConfigError, match=says):
        esper.load_adapter(fresh, tmp_path)
    assert not esper_layers(fresh)
    assert torch.equal(outputs(fresh), outputs(host()))


def test_another_host_is_refused(model: nn.Module, tmp_path: Path) -> None:
    esper.save_adapter(model, tmp_path)
    with pytest.raises(ConfigError, match="is of another host, a Sequential: the model's frozen"):
        esper.load_adapter(host(seed=1), tmp_path)


def test_a_kernel_under_way_is_neither_saved_nor_merged(tmp_path: Path) -> None:
    model = esper.wrap(host(), ["down"], ["lora"])
    layer = model.get_submodule("down")
    assert isinstance(layer, esper.KasminaLayer)
    layer.load_kernel(0, nn.Linear(8, 6))
    layer.advance(0, SeedState.TRAINING)
    layer.advance(0, SeedState.BLENDING)
    for call in (lambda: esper.save_adapter(model, tmp_path), lambda: esper.merge(model)):
        with pytest.raises(LifecycleError, match="is being blended in; call tamiyo"):
            call()


def test_a_copy_of_an_adapted_model_computes_the_same(model: nn.Module) -> None:
    assert torch.equal(outputs(deepcopy(model)), outputs(model))


def test_a_loaded_adapter_is_trained_and_its_host_is_not(
    model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = host()
    esper.load_adapter(fresh, esper.save_adapter(model, tmp_path))
    esper.print_trainable_parameters(model)
    esper.print_trainable_parameters(fresh)
    told, loaded = capsys.readouterr().out.splitlines()
    assert told == loaded
    optimizer = torch.optim.SGD([p for p in fresh.parameters() if p.requires_grad], lr=0.1)
    torch.autograd.backward(loss_fn(fresh, batches(1)[0]).mean())
    optimizer.step()
    assert not torch.equal(outputs(fresh), outputs(model))
    again = host()
    esper.load_adapter(again, esper.save_adapter(fresh, tmp_path))
    assert torch.equal(outputs(again), outputs(fresh))


def test_trainable_parameters_of_the_host_are_not_those_of_kernels(
    model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = sum(layer.grown_parameters for layer in esper_layers(model))
    model.get_parameter("encoder.norm.weight").requires_grad_(True)
    esper.print_trainable_parameters(model)
    says = f"{grown + 29:,} ({grown:,} in kernels, 21 in the head, 8 in the rest of the host)"
    assert says in capsys.readouterr().out


def test_statistics_that_move_in_training_are_a_part_of_the_adapter(tmp_path: Path) -> None:
    def normed() -> nn.Module:
        made = host()
        made.get_submodule("encoder").add_module("norm", nn.BatchNorm1d(8))
        return made

    model = normed().train()
    adapted(model)
    first = outputs(model)
    assert not torch.equal(model.get_buffer("encoder.norm.running_mean"), torch.zeros(8))
    adapted(model.train(), steps=12, name="second", rate=3e-2)
    second = outputs(model)
    with esper.disabled(model):
        assert torch.equal(outputs(model), outputs(normed()))
    fresh = normed()
    esper.load_adapter(fresh, esper.save_adapter(model, tmp_path / "second"))
    assert torch.equal(outputs(fresh), second)
    esper.set_adapter(model, "default")
    assert torch.equal(outputs(model), first)
    with esper.disabled(fresh):
        assert torch.equal(outputs(fresh), outputs(normed()))
    torch.testing.assert_close(outputs(esper.merge(model)), first)


@pytest.mark.parametrize("full_at", [1, 2])
def test_a_save_that_fails_leaves_the_adapter_that_was_there(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    first = outputs(model)
    esper.save_adapter(model, tmp_path)
    adapted(model, steps=12, name="second", rate=3e-2)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == full_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("esper.stores.files.os.fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device: .*adapter\.(safetensors|json)"):
        esper.save_adapter(model, tmp_path)
    fresh = host()
    assert esper.load_adapter(fresh, tmp_path) == "default"
    assert torch.equal(outputs(fresh), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter.json",
        "adapter.safetensors",
    ]


def test_a_folder_that_is_a_file_is_told(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written to .*taken"):
        esper.save_adapter(model, tmp_path / "taken")
