"""Wrapped layers of every kind, and what users do to them."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from typing_extensions import override

from tests.loops.batches import Tagger, sentences, token_losses
from tests.loops.situations import refused, works
from tests.loops.trial import Net, Trial


class Language(nn.Module):
    """Tokens (B, T) to the next ones; the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.fc1 = nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.head.weight = self.embedding.weight

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        y: Tensor = self.head(h + torch.relu(self.fc1(h)))
        return y


@works
def tied_weights(trial: Trial) -> None:
    """The wrapped head shares its weight with the embedding, and is tied again after wrapping."""
    model = Language()
    trial.wrap(model, ["head"])
    model.tie_weights()
    train, held_out = sentences(4, 1), sentences(2, 2)
    trial.train(model, [], loss_fn=token_losses, batches=train, holdout=held_out)
    assert model.head.weight is model.embedding.weight


@works
def weight_norm(trial: Trial) -> None:
    """`weight_norm` is put on the wrapped layer."""
    model = Net()
    trial.wrap(model)
    parametrizations.weight_norm(model.fc1)
    trial.train(model, [])


@works
def spectral_norm(trial: Trial) -> None:
    """`spectral_norm`, which writes a buffer in each pass, is on the layer that is wrapped then."""
    model = Net()
    parametrizations.spectral_norm(model.fc1)
    trial.train(model)


@works
def pruned(trial: Trial) -> None:
    """The wrapped layer is pruned: `prune.l1_unstructured(layer, "weight", 0.5)`."""
    model = Net()
    trial.wrap(model)
    prune.l1_unstructured(model.fc1, "weight", 0.5)  # type: ignore[no-untyped-call]
    trial.train(model, [])


@works
def hooks(trial: Trial) -> None:
    """A hook on the wrapped layer changes its output."""
    model = Net()
    model.fc1.register_forward_hook(lambda _module, _args, output: output * 0.5)
    trial.train(model)


@works
def gradient_hooks(trial: Trial) -> None:
    """Hooks on the parameters of the wrapped layer change their gradients."""
    model = Net()
    for parameter in model.fc1.parameters():
        parameter.register_hook(lambda grad: grad.clamp(-0.01, 0.01))  # type: ignore[no-untyped-call]
    trial.train(model)


@works
def initialised_again(trial: Trial) -> None:
    """`model.apply(init)` sets the weights of every `nn.Linear` after wrapping."""

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            nn.init.constant_(module.weight, 0.1)

    model = trial.wrap(Net())
    model.apply(init)
    trial.train(model, [])


@works
def attributes_of_the_layer(trial: Trial) -> None:
    """The model reads attributes of the wrapped layer, as `self.fc1.out_features`."""

    class Model(Net):
        @override
        def forward(self, x: Tensor) -> Tensor:
            scale: float = self.fc1.out_features**0.5
            return super().forward(x) / scale

    trial.train(Model()).plain = False


@works
def layer_norm_layer(trial: Trial) -> None:
    """The wrapped layer is a normalisation."""
    trial.train(Net(nn.LayerNorm(8)), ["between.0"])


@works
def activation_layer(trial: Trial) -> None:
    """The wrapped layer has no parameters, as `nn.GELU`."""
    trial.train(Net(nn.GELU()), ["between.0"])


@works
def block(trial: Trial) -> None:
    """A whole block is wrapped."""
    trial.train(Net(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())), ["between.0"])


@works
def layer_of_an_encoder(trial: Trial) -> None:
    """`linear1` of an `nn.TransformerEncoderLayer` is wrapped, which has a fused path."""

    class Model(Tagger):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)  # type: ignore[assignment]

    train, held_out = sentences(4, 1), sentences(2, 2)
    trial.train(Model(), ["fc1.linear1"], loss_fn=token_losses, batches=train, holdout=held_out)


@works
def integer_input_beside_another(trial: Trial) -> None:
    """An embedding is wrapped beside other layers: a warning leaves it out, the others grow."""
    train, held_out = sentences(4, 1), sentences(2, 2)
    trial.train(
        Tagger(), ["embedding", "fc1"], loss_fn=token_losses, batches=train, holdout=held_out
    )


@refused(
    "layer 'embedding' cannot grow: it reads int64, and a kernel reads floating-point "
    "numbers; wrap the layer after it"
)
def integer_input(trial: Trial) -> None:
    """The one wrapped layer reads integers."""
    train, held_out = sentences(4, 1), sentences(2, 2)
    trial.train(Tagger(), ["embedding"], loss_fn=token_losses, batches=train, holdout=held_out)


@refused(
    "layer 'fc1' cannot grow: it reads complex64, and a kernel reads floating-point numbers; "
    "wrap the layer after it"
)
def complex_input(trial: Trial) -> None:
    """The one wrapped layer reads complex numbers."""

    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(6, 8, dtype=torch.complex64)

        @override
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc2(self.fc1(torch.complex(x, x)).abs())
            return y

    trial.train(Model())


class Recurrent(nn.Module):
    """A recurrent layer, which gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)
        self.fc2 = nn.Linear(8, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.rnn(x[:, None])[0][:, -1])
        return y


@refused(
    "layer 'rnn' maps Tensor to tuple; a layer that grows maps a tensor to a tensor; wrap a "
    "layer inside it, or one beside it"
)
def recurrent_layer(trial: Trial) -> None:
    """The one wrapped layer gives a tuple, as `nn.GRU`."""
    trial.train(Recurrent(), ["rnn"])


@works
def beside_a_recurrent_layer(trial: Trial) -> None:
    """The wrapped layer follows an `nn.GRU`."""
    trial.train(Recurrent(), ["fc2"])


class Attending(nn.Module):
    """Attention over six numbers as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc2 = nn.Linear(8, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x[..., None])
        y: Tensor = self.fc2(self.attention(h, h, h, need_weights=False)[0].mean(1))
        return y


@refused(
    "layer 'attention.out_proj' is never called: nn.MultiheadAttention reads its weight "
    "directly. Wrap a layer outside it, as the feed-forward, or use an attention module that "
    "calls it"
)
def projection_of_an_attention(trial: Trial) -> None:
    """The output projection of an `nn.MultiheadAttention` is wrapped."""
    trial.train(Attending(), ["attention.out_proj"])


@refused(
    "layer 'between.0' is shared: it is also between.2. A seed would act in all of them; "
    "give each place a module of its own"
)
def shared_layer(trial: Trial) -> None:
    """The wrapped layer stands in two places of the model."""
    model = Net(nn.Linear(8, 8), nn.ReLU())
    model.between.append(model.between[0])
    trial.train(model, ["between.0"])


@works
def whole_model(trial: Trial) -> None:
    """The whole model is one layer, `layers=[""]`, and the loop calls what `wrap` returned."""
    model = trial.wrap(Net(), ["", "fc1"])
    tamiyo = trial.train(model, ())
    assert not trial.grown or tamiyo.made.tracker.events.scope == "Net"


@works
def layer_inside_another(trial: Trial) -> None:
    """A layer and a block around it are wrapped."""
    trial.train(Net(nn.Linear(8, 8)), ["between", "between.0"])


@refused("unknown layer 'fc3'; known: fc1, between, fc2. Did you mean 'fc2'?")
def misspelt_layer(trial: Trial) -> None:
    """A name of `layers` is misspelt."""
    trial.train(Net(), ["fc3"])
