"""Real models in the real frameworks, and what is refused before their first batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from typing_extensions import override

import esper
from esper.contracts.errors import ConfigError
from esper.integrations import lightning, plain, transformers
from esper.integrations.per_example import loss_fn_for
from esper.integrations.requirements import require
from esper.testing.integration_laws import Toy, adam
from tests.frameworks import OF_THEIR_OWN
from tests.frameworks.lightning import Lit

pytestmark = [pytest.mark.slow, *map(pytest.mark.filterwarnings, OF_THEIR_OWN)]

KEEP_ALL = {"growth": {"budget": 2000, "plateau_threshold": 1.0, "train_epochs": 1}}


def bert() -> BertForSequenceClassification:
    set_seed(0)
    config: Any = BertConfig(
        id2label={0: "none", 1: "one", 2: "both"},
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config)


def sentences(number: int) -> list[dict[str, Any]]:
    words = torch.randint(0, 20, (number, 8), generator=torch.Generator().manual_seed(0))
    labels = ((words == 3).any(1).long() + (words == 4).any(1).long()).tolist()
    return [{"input_ids": w, "labels": y} for w, y in zip(words, labels, strict=True)]


def trainer_of(model: Any, folder: Path, *, epochs: int = 5, held_out: int = 64) -> Trainer:
    data = sentences(192 + held_out)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        save_strategy="steps",
        save_steps=6,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model, arguments, train_dataset=data[:192], eval_dataset=data[192:] or None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("bert")
    model = bert()
    trainer = trainer_of(model, folder)
    growth = transformers.Growth(trainer, layers=["*.output.dense"], config=KEEP_ALL)
    trainer.train()
    return folder, model, growth


def test_a_trainer_grows_a_bert_by_one_line(trained: tuple[Path, Any, Any]) -> None:
    growth = trained[2]
    assert growth.report.epoch == 4
    assert sum(layer.grown_parameters for layer in growth.tamiyo.layers.values()) > 0
    assert len(growth.tamiyo.layers) == 4


@pytest.mark.parametrize("epochs", [2, 3, 4])
def test_a_trainer_takes_up_a_bert_with_dropout_in_mid_graft(
    epochs: int, trained: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    folder, whole, _ = trained
    again = bert()
    trainer = trainer_of(again, tmp_path)
    transformers.Growth(trainer, layers=["*.output.dense"], config=KEEP_ALL)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{6 * epochs}"))
    ours, theirs = again.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "kind", [BertForSequenceClassification, AutoModelForSequenceClassification]
)
def test_a_grown_model_is_saved_and_loaded(
    kind: Any, trained: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    _, model, _ = trained
    model.save_pretrained(tmp_path)
    again = esper.from_pretrained(tmp_path, kind)
    words = torch.stack([one["input_ids"] for one in sentences(16)])
    model.eval()
    with torch.no_grad():
        assert torch.equal(again(words).logits, model(words).logits)
        plain_again = esper.harden(again)
        torch.testing.assert_close(plain_again(words).logits, model(words).logits)


def test_a_wrapped_causal_model_with_tied_weights_is_saved_and_loaded(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model: Any = esper.wrap(GPT2LMHeadModel(config), ["*.mlp"])
    model.eval()
    model.save_pretrained(tmp_path)
    again = esper.from_pretrained(tmp_path)
    words = torch.arange(16).reshape(2, 8)
    assert torch.equal(again(words).logits, model(words).logits)
    losses, mask = loss_fn_for(again)(again, {"input_ids": words, "labels": words})
    mean = again(input_ids=words, labels=words).loss
    assert mask.all()
    torch.testing.assert_close(losses.mean(), mean)


def test_per_example_losses_of_classes_are_those_of_the_model() -> None:
    model: Any = bert()
    model.eval()
    data = sentences(16)
    batch = {k: torch.stack([torch.as_tensor(one[k]) for one in data]) for k in data[0]}
    losses = loss_fn_for(model)(model, batch)
    assert losses.shape == (16,)
    torch.testing.assert_close(losses.mean(), model(**batch).loss)


def test_a_trainer_without_a_holdout_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(bert(), tmp_path, held_out=0)
    with pytest.raises(ConfigError, match="the Trainer has no eval_dataset"):
        transformers.Growth(trainer, layers=["*.output.dense"])


def test_a_trainer_of_a_model_with_a_mean_loss_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(Toy().model(), tmp_path)
    with pytest.raises(ConfigError, match=r"Net gives a mean loss, .* loss_fn=lambda model, batch"):
        transformers.Growth(trainer, layers=["net.fc1"])


def test_a_checkpoint_without_growth_is_refused(tmp_path: Path) -> None:
    trainer_of(esper.wrap(bert(), ["*.output.dense"]), tmp_path, epochs=1).train()
    trainer = trainer_of(bert(), tmp_path)
    transformers.Growth(trainer, layers=["*.output.dense"], config=KEEP_ALL)
    with pytest.raises(ConfigError, match=r"has no esper\.safetensors"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layers": ()}, "the model is not wrapped; name its layers"),
        ({"layers": [""]}, "the whole model, in whose place another module would stand"),
        ({"every": 0}, "every is 0"),
    ],
)
def test_what_cannot_grow_is_refused(given: dict[str, Any], sentence: str) -> None:
    model = Toy().model()
    with pytest.raises(ConfigError, match=sentence):
        plain.Growth(model, adam(model), **(Toy().growth | given))


def test_a_module_without_an_optimizer_is_refused() -> None:
    class Frozen(Lit):
        @override
        def configure_optimizers(self) -> Any:
            return None

    batches: Any = DataLoader(Toy().train, batch_size=None)  # type: ignore[arg-type]
    trainer = LightningTrainer(
        accelerator="cpu",
        callbacks=[lightning.Growth(**Toy().growth)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    with (
        pytest.warns(UserWarning, match="will run with no optimizer"),
        pytest.raises(ConfigError, match=r"Frozen\.configure_optimizers gives no optimizer"),
    ):
        trainer.fit(Frozen(Toy()), batches, batches)


@pytest.mark.parametrize("first", [True, False], ids=["growth first", "averaging first"])
def test_lightnings_late_average_grows_with_the_model(*, first: bool) -> None:
    class Plain(Lit):
        @override
        def configure_optimizers(self) -> Any:
            return adam(self)

    growth, module = lightning.Growth(**Toy().growth), Plain(Toy(epochs=6))
    averaging = StochasticWeightAveraging(0.01, swa_epoch_start=4)
    trainer = LightningTrainer(
        accelerator="cpu",
        callbacks=[growth, averaging] if first else [averaging, growth],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=6,
    )
    batches: Any = DataLoader(Toy().train, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, batches, batches)
    assert growth.tamiyo is not None
    assert growth.tamiyo.used > 0
    average = averaging._average_model
    assert average is not None
    shapes = [p.shape for p in module.parameters()]
    assert [p.shape for p in average.parameters()] == shapes


def test_a_framework_that_is_missing_or_old_is_refused_with_its_extra() -> None:
    with pytest.raises(ConfigError, match=r"no-such-thing is not installed.*esper-morph\[none\]"):
        require("no-such-thing", "1.0", extra="none")
    with pytest.raises(ConfigError, match=r"torch is .*, and must be 99\.1 or newer"):
        require("torch", "99.1", extra="torch")
    with pytest.raises(ConfigError, match=r"lightning 2\.6\.6 is a withdrawn"):
        require("lightning", "2.6.4", extra="lightning", never=("2.6.6",))


def test_steps_count_as_epochs() -> None:
    model = Toy().model()
    growth = plain.Growth(model, adam(model), **Toy().growth, every=4)
    for _ in range(2):
        for batch in growth.epoch(Toy().train):
            assert batch
    assert growth.report is not None
    assert growth.report.epoch == 2  # 12 steps


def test_host_parameters_are_those_without_kernels(trained: tuple[Path, Any, Any]) -> None:
    _, model, growth = trained
    host = esper.host_parameters(model)
    assert sum(p.numel() for p in host) == sum(p.numel() for p in bert().parameters())
    kernels = [k for la in growth.tamiyo.layers.values() for k in la.contributions()]
    grown = sum(p.numel() for part in kernels for p in part.kernel.parameters())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in host) + grown
    assert isinstance(host[0], nn.Parameter)


def test_an_epoch_that_was_left_ends_when_the_next_one_begins() -> None:
    toy = Toy()
    model = toy.model()
    growth = plain.Growth(model, adam(model), **toy.growth)
    for _ in growth.epoch(toy.train):  # at its first batch: none counts
        break
    for epoch in range(3):
        for number, _ in enumerate(growth.epoch(toy.train)):
            assert (growth.report.epoch if growth.report else -1) == epoch - 1
            if number == 2:
                break
    assert growth.tamiyo is not None
    assert growth.tamiyo.state_dict()["batches"] == 6
    list(growth.epoch(toy.train))
    assert growth.report is not None
    assert growth.report.epoch == 3


def test_a_batch_that_was_left_is_not_counted_on_a_state_that_is_loaded() -> None:
    toy = Toy()
    model = toy.model()
    growth = plain.Growth(model, adam(model), **toy.growth)
    saved = growth.state_dict()
    for _ in growth.epoch(toy.train):
        break
    growth.load_state_dict(saved)
    growth.settle()
    assert growth.tamiyo is not None
    assert growth.tamiyo.state_dict()["batches"] == 0
    for _ in growth.epoch(toy.train):
        break
    growth.settle()
    growth.settle()  # once
    assert growth.tamiyo.state_dict()["batches"] == 1
