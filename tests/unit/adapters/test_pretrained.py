"""Adapted models of transformers as folders: merged and plain, or with their kernels."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

import esper
from esper.contracts.errors import ConfigError

NAME = "model.safetensors"
WORDS = torch.arange(32).reshape(4, 8) % 20


def bert(dtype: torch.dtype = torch.float32) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more: dict[str, Any] = {"vocab_size": 20, "intermediate_size": 8, "max_position_embeddings": 16}
    config: Any = BertConfig(**sizes, **more)
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = BertForSequenceClassification(config)
        return model.eval().to(dtype)


def loss_fn(model: nn.Module, words: Tensor) -> Tensor:
    return F.cross_entropy(model(words).logits, words[:, 0] % 3, reduction="none")


def adapted(seeds: tuple[str, ...] = ("lora",), dtype: torch.dtype = torch.float32) -> Any:
    model = bert(dtype)
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=3e-2)
    layers = ["*.output.dense"] if seeds == ("lora",) else ["bert.encoder.layer.0.intermediate"]
    given: dict[str, Any] = {"loss_fn": loss_fn, "holdout": [WORDS], "every": 2, "seeds": seeds}
    tamiyo = esper.adapt(model, layers, optimizer=optimizer, budget=16.0, **given)
    for _ in range(6):
        optimizer.zero_grad()
        torch.autograd.backward(loss_fn(model, WORDS).mean())
        optimizer.step()
        tamiyo.on_batch_end(WORDS)
    tamiyo.finish()
    assert tamiyo.used
    return model.eval()


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(WORDS).logits  # type: ignore[no-any-return]


def test_transformers_loads_a_merged_model_by_itself(tmp_path: Path) -> None:
    model = adapted()
    esper.merge(model).save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False)
    assert [type(m) for m in plain.modules()] == [type(m) for m in bert().modules()]
    assert not torch.allclose(outputs(model), outputs(bert()), atol=1e-2)
    torch.testing.assert_close(outputs(plain), outputs(model))
    assert torch.equal(outputs(esper.from_pretrained(tmp_path)), outputs(plain))


@pytest.mark.parametrize("seeds", [("lora",), ("bottleneck",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_put_onto_the_class_that_a_folder_tells(
    seeds: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = adapted(seeds, dtype)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again = esper.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(outputs(again), outputs(model))
    assert not torch.equal(outputs(again), outputs(bert(dtype)))
    with esper.disabled(again):
        assert not torch.equal(outputs(again), outputs(model))
    again.save_pretrained(tmp_path)
    assert torch.equal(outputs(esper.from_pretrained(tmp_path)), outputs(model))


@pytest.mark.parametrize("of", ["wrapped", "copy", "inner", "hardened", "partly merged"])
def test_a_plain_from_pretrained_refuses_a_folder_with_kernels(of: str, tmp_path: Path) -> None:
    model = adapted(("bottleneck",))
    saved = {
        "wrapped": lambda: model,
        "copy": lambda: deepcopy(model),
        "inner": lambda: model.bert,
        "hardened": lambda: esper.harden(model),
        "partly merged": lambda: esper.merge(model),
    }[of]()
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"have kernels .*esper.from_pretrained\(folder\)"):
        BertForSequenceClassification.from_pretrained(tmp_path)
    if of in {"hardened", "partly merged"}:
        with pytest.raises(ConfigError, match=r"no configuration names\. Save the wrapped model"):
            esper.from_pretrained(tmp_path)


def test_a_model_that_is_plain_again_is_saved_as_one(tmp_path: Path) -> None:
    model = esper.wrap(bert(), ["*.output.dense"])
    for name, plain in (("hardened", esper.harden(model)), ("unwrapped", esper.unwrap(model))):
        plain.save_pretrained(tmp_path / name)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert torch.equal(outputs(again), outputs(bert()))


def test_a_whole_wrapped_model_is_saved_by_torch_as_before(tmp_path: Path) -> None:
    model = adapted()
    torch.save(model, tmp_path / "whole")
    again = torch.load(tmp_path / "whole", weights_only=False)
    assert torch.equal(outputs(again), outputs(model))


def test_tied_weights_and_the_layers_of_gpt2(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    made: Any = GPT2LMHeadModel(config)
    model = esper.wrap(made.eval(), ["*.mlp"])
    model.save_pretrained(tmp_path)
    for again in (
        esper.from_pretrained(tmp_path),
        esper.from_pretrained(tmp_path, AutoModelForCausalLM),
    ):
        assert torch.equal(outputs(again), outputs(model))
        assert again.lm_head.weight is again.transformer.wte.weight


class OwnConfig(BertConfig):  # type: ignore[no-untyped-call]
    model_type = "own"


class OwnModel(BertForSequenceClassification):  # type: ignore[no-untyped-call]
    config_class = OwnConfig


def test_a_class_of_the_users_own_is_given(tmp_path: Path) -> None:
    made: Any = OwnModel(OwnConfig(**bert().config.to_diff_dict() | {"model_type": "own"}))
    model = esper.wrap(made.eval(), ["*.output.dense"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is of OwnModel, and transformers .* give its class"):
        esper.from_pretrained(tmp_path)
    again = esper.from_pretrained(tmp_path, OwnModel)
    assert torch.equal(outputs(again), outputs(model))
    with pytest.raises(ValueError, match=r"esper.from_pretrained\(folder\)"):
        OwnModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda p: (p / "config.json").unlink(), r"has no config\.json; give the folder that"),
        (lambda p: (p / "config.json").write_text("{"), r"config\.json is damaged"),
        (lambda p: (p / "config.json").write_text("3"), r"config\.json is damaged"),
        (lambda p: (p / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * 99), "its weights are damaged"),
        (lambda p: (p / "model.safetensors").rename(p / f"{NAME}.index.json"), "are damaged"),
        (lambda p: edit(p, hidden_size=32), "are of two models: size mismatch for bert"),
        (lambda p: edit(p, num_hidden_layers=2), "not hold a model like this one: 'bert.encoder"),
        (lambda p: edit(p, architectures=["MyBert"]), "is of MyBert, and transformers .* give its"),
        (lambda p: edit(p, architectures=None), "is of no class"),
        (lambda p: edit(p, architectures=3), "is of no class"),
        (lambda p: edit(p, num_attention_heads=3), "is damaged: .* not a multiple of the number"),
        (lambda p: edit(p, hidden_size="wide"), "is damaged: .*hidden_size"),
        (lambda p: schema(p, 99), "has schema 99, this version reads up to 1"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(harm: Any, says: str, tmp_path: Path) -> None:
    esper.wrap(bert(), ["*.output.dense"]).save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(ConfigError, match=says):
        esper.from_pretrained(tmp_path)


def edit(place: Path, **fields: Any) -> None:
    data = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**data, **fields}))


def schema(place: Path, number: int) -> None:
    state = load_file(place / "model.safetensors")
    for key in [key for key in state if key.endswith("_extra_state")]:
        topology = json.loads(bytes(state[key].tolist())) | {"schema": number}
        packed = bytearray(json.dumps(topology).encode())
        state[key] = torch.frombuffer(packed, dtype=torch.uint8)
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_that_is_not_there_and_one_of_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere has no config\.json"):
        esper.from_pretrained(tmp_path / "nowhere")
    esper.save_adapter(adapted(), tmp_path)
    with pytest.raises(ConfigError, match=r"holds an adapter alone; .* esper\.load_adapter"):
        esper.from_pretrained(tmp_path)
    host = bert()
    esper.load_adapter(host, tmp_path)
    assert torch.equal(outputs(host), outputs(adapted()))
