"""Models around the wrapped layers: what they are made of, and what they do in a pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

import esper
from tests.loops.situations import refused, works
from tests.loops.trial import HOLDOUT, TRAIN, Net, Trial, adam, loss_fn


class Task(nn.Module):
    """Holds a network, as a LightningModule or a loss wrapper does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


@works
def inside_another_module(trial: Trial) -> None:
    """The wrapped model is a part of another module, which is the one that trains."""
    trial.train(Task(trial.wrap(Net())), ["net.fc2"])


@works
def data_parallel(trial: Trial) -> None:
    """The model is in `nn.DataParallel`."""
    trial.train(nn.DataParallel(Net()), ["module.fc1"])


@works
def compiled(trial: Trial) -> None:
    """The model is compiled after wrapping, and Tamiyo gets the compiled one."""
    model = trial.wrap(Net())
    used: Any = torch.compile(model, backend="eager")
    optimizer = adam(model)
    tamiyo = trial.tamiyo(used, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(used, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def batch_norm(trial: Trial) -> None:
    """The model has batch normalisation, whose statistics no pass on the side may move."""
    trial.train(Net(nn.BatchNorm1d(8)))


@works
def dropout(trial: Trial) -> None:
    """The model has dropout, and passes on the side draw nothing from its random state."""
    trial.train(Net(nn.Dropout(0.3)))


@works
def frozen_batch_norm(trial: Trial) -> None:
    """Batch normalisation stays in evaluation mode while the rest trains."""
    model = Net(nn.BatchNorm1d(8))
    train = model.train

    def keep(mode: bool = True) -> nn.Module:
        train(mode)
        model.between.eval()
        return model

    model.train = keep  # type: ignore[method-assign,assignment]
    trial.train(model)


@works
def frozen_trunk(trial: Trial) -> None:
    """The trunk is frozen, and the wrapped head alone is trained."""
    model = Net()
    model.fc1.requires_grad_(False)
    trial.train(
        model, ["fc2"], make=lambda m: Adam([p for p in m.parameters() if p.requires_grad], 0.02)
    )


@works
def frozen_wrapped_layer(trial: Trial) -> None:
    """The wrapped layer is frozen, and the optimizer holds the rest."""
    model = Net()
    model.fc1.requires_grad_(False)
    trial.train(
        model, ["fc1"], make=lambda m: Adam([p for p in m.parameters() if p.requires_grad], 0.02)
    )


@works
def average_of_weights(trial: Trial) -> None:
    """An `AveragedModel` that was made before growth is updated after each batch."""
    model = trial.wrap(Net())
    optimizer, ema = adam(model), AveragedModel(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            ema.update_parameters(model)
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    assert [p.shape for p in ema.parameters()] == [p.shape for p in model.parameters()]


@works
def average_of_the_state_dict(trial: Trial) -> None:
    """A copy of the state dict is averaged entry by entry after each batch."""
    model = trial.wrap(Net())
    optimizer, average = adam(model), {n: t.clone() for n, t in model.state_dict().items()}
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].mul_(0.9).add_(value, alpha=0.1)
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    assert average.keys() == model.state_dict().keys()


@works
def anchors_by_name(trial: Trial) -> None:
    """`loss_fn` pulls each parameter to where it began, as L2-SP and elastic weights do."""
    model = trial.wrap(Net(nn.Linear(8, 8)), ["fc1", "between.0"])
    began = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(model: nn.Module, batch: Any) -> Any:
        pulls = ((p - began[name]).square().sum() for name, p in model.named_parameters())
        return loss_fn(model, batch) + 0.01 * sum(pulls)

    trial.train(model, [], loss_fn=loss).plain = False  # it has other names


@works
def anchors_by_position(trial: Trial) -> None:
    """The same, with a list of values that is paired with `model.parameters()`."""
    model = trial.wrap(Net(nn.Linear(8, 8)), ["fc1", "between.0"])
    began = [p.detach().clone() for p in model.parameters()]

    def loss(model: nn.Module, batch: Any) -> Any:
        pairs = zip(model.parameters(), began, strict=True)
        return loss_fn(model, batch) + 0.01 * sum((p - a).square().sum() for p, a in pairs)

    trial.train(model, [], loss_fn=loss)


class LayerDrop(Net):
    """Skips its block in a part of the training passes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8))

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        if not self.training or float(torch.rand(())) > 0.3:
            h = h + self.between(h)
        y: Tensor = self.fc2(h)
        return y


@works
def layer_drop(trial: Trial) -> None:
    """The wrapped layer is skipped in a part of the training passes."""
    trial.train(LayerDrop(), ["between.0"])


class Heads(Net):
    """One head for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"p": nn.Linear(8, 3), "q": nn.Linear(8, 3)})

    def run(self, x: Tensor, task: str) -> Tensor:
        y: Tensor = self.heads[task](torch.relu(self.fc1(x)))
        return y


@works
def alternating_heads(trial: Trial) -> None:
    """Two tasks alternate, and each batch reaches the head of one."""

    def of(model: Any, batch: Any) -> Tensor:
        losses: Tensor = (model.run(batch[0], batch[2]) - batch[1]).square().mean(1)
        return losses

    train, held_out = ([(*pair, "pq"[i % 2]) for i, pair in enumerate(b)] for b in (TRAIN, HOLDOUT))
    model = Heads()
    del model.fc2
    trial.train(model, ["heads.p", "heads.q"], loss_fn=of, batches=train, holdout=held_out)


class Experts(Net):
    """Two experts; a gate sends each example to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        scores, out = self.gate(h).softmax(1), torch.zeros_like(h)
        for index, expert in enumerate(self.experts[:2]):
            chosen = scores.argmax(1) == index
            if chosen.any():
                out[chosen] = scores[chosen, index, None] * expert(h[chosen])
        y: Tensor = self.fc2(h + out)
        return y


@works
def experts(trial: Trial) -> None:
    """Experts get a part of the examples of a batch each, and one of them gets none."""
    trial.train(Experts(), ["experts.0", "experts.1", "experts.2"])


class Checkpointed(Net):
    """Computes its first layers again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__(nn.Dropout(0.2))
        self.reentrant = reentrant

    @override
    def forward(self, x: Tensor) -> Tensor:
        def first(x: Tensor) -> Tensor:
            y: Tensor = self.between(torch.relu(self.fc1(x)))
            return y

        x = x.clone().requires_grad_(self.reentrant)
        y: Tensor = self.fc2(checkpoint(first, x, use_reentrant=self.reentrant))
        return y


@works
def checkpointing(trial: Trial) -> None:
    """The wrapped layer is in activation checkpointing, `use_reentrant=False`."""
    trial.train(Checkpointed(reentrant=False))


@refused(
    "layer 'fc1' cannot grow: no loss of the holdout depends on it in training, as under "
    "torch.no_grad, torch.func.vmap or reentrant gradient checkpointing; let gradients reach "
    "it, and call torch.utils.checkpoint.checkpoint with use_reentrant=False"
)
def reentrant_checkpointing(trial: Trial) -> None:
    """The wrapped layer is in reentrant activation checkpointing, `use_reentrant=True`."""
    trial.train(Checkpointed(reentrant=True))


class Both(Net):
    """Gives a tuple in training and a tensor in evaluation."""

    @override
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, y) if self.training else y


@works
def tuple_in_training(trial: Trial) -> None:
    """The model gives a tuple in training, for an auxiliary loss, and a tensor in evaluation."""

    def of(model: nn.Module, batch: Any) -> Any:
        y = model(batch[0])
        main, *others = y if isinstance(y, tuple) else (y,)
        return sum(
            (0.3 * (o - batch[1]).square().mean(1) for o in others),
            (main - batch[1]).square().mean(1),
        )

    trial.train(Both(), loss_fn=of)


@works
def dictionary_of_outputs(trial: Trial) -> None:
    """The model takes keyword arguments and gives a dictionary of outputs."""

    class Model(Net):
        @override
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x)}

    def of(model: nn.Module, batch: Any) -> Tensor:
        losses: Tensor = (model(x=batch[0])["logits"] - batch[1]).square().mean(1)
        return losses

    trial.train(Model(), loss_fn=of)


@works
def half_precision(trial: Trial) -> None:
    """The model's weights are bfloat16."""
    train, held_out = ([(x.bfloat16(), y.bfloat16()) for x, y in p] for p in (TRAIN, HOLDOUT))
    trial.train(Net().bfloat16(), batches=train, holdout=held_out)


@works
def double_precision(trial: Trial) -> None:
    """The model's weights are float64."""
    train, held_out = ([(x.double(), y.double()) for x, y in p] for p in (TRAIN, HOLDOUT))
    trial.train(Net().double(), batches=train, holdout=held_out)


@works
def output_into_itself(trial: Trial) -> None:
    """The output of the wrapped layer is changed in place: `F.relu(self.fc1(x), inplace=True)`."""

    class Model(Net):
        @override
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc2(F.relu(self.fc1(x), inplace=True))
            return y

    trial.train(Model())


@works
def layer_called_twice(trial: Trial) -> None:
    """The wrapped layer is called twice in a pass, as in a network that is unrolled."""

    class Model(Net):
        @override
        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.fc1(x))
            h = h + self.between(h)
            y: Tensor = self.fc2(h + self.between(h))
            return y

    trial.train(Model(nn.Linear(8, 8)), ["between.0"])


@works
def wrapped_after_the_optimizer(trial: Trial) -> None:
    """The optimizer was made before `esper.wrap`."""
    model = Net()
    optimizer = adam(model)
    trial.wrap(model)
    trial.train(model, [], make=lambda _: optimizer)


@works
def two_models(trial: Trial) -> None:
    """Two models with a Tamiyo each train against each other, as a generator and its critic."""
    nets = [trial.wrap(Net()) for _ in range(2)]
    optimizers = [adam(net) for net in nets]

    def of(one: nn.Module, other: nn.Module) -> Any:
        def losses(model: nn.Module, batch: Any) -> Any:
            return loss_fn(one, batch) + 0.1 * (
                one(batch[0]) - other(batch[0]).detach()
            ).abs().mean(1)

        return losses

    functions = [of(*nets), of(*reversed(nets))]
    tamiyos = [
        trial.tamiyo(n, o, loss_fn=f) for n, o, f in zip(nets, optimizers, functions, strict=True)
    ]
    for epoch in trial.epochs:
        for batch in TRAIN:
            for net, optimizer, losses in zip(nets, optimizers, functions, strict=True):
                optimizer.zero_grad()
                losses(net, batch).mean().backward()
                optimizer.step()
            for tamiyo in tamiyos:
                tamiyo.on_batch_end(batch)
        for tamiyo in tamiyos:
            tamiyo.on_epoch_end(epoch)


@works
def statistics_by_update_bn(trial: Trial) -> None:
    """Statistics of averaged weights are estimated by `update_bn(loader, average)`."""
    model = trial.wrap(Net(nn.BatchNorm1d(8)))
    optimizer, average = adam(model), AveragedModel(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        average.update_parameters(model)
        update_bn([x for x, _ in TRAIN], average)
        tamiyo.on_epoch_end(epoch)


@works
def functional_call(trial: Trial) -> None:
    """`loss_fn` calls the model by `torch.func.functional_call` with its named parameters."""

    def of(model: nn.Module, batch: Any) -> Any:
        given: dict[str, Tensor] = dict(model.named_parameters())
        return (torch.func.functional_call(model, given, (batch[0],)) - batch[1]).square().mean(1)

    trial.train(Net(), loss_fn=of)


@works
def features_by_a_hook(trial: Trial) -> None:
    """`loss_fn` reads features that a forward hook on the wrapped layer collects."""
    model, features = Net(), []
    model.fc1.register_forward_hook(lambda _module, _args, output: features.append(output))

    def of(model: nn.Module, batch: Any) -> Any:
        features.clear()
        return loss_fn(model, batch) + 0.01 * features[0].square().mean(1)

    trial.train(model, loss_fn=of)


@works
def teacher(trial: Trial) -> None:
    """A frozen teacher outside the model gives the targets."""
    frozen = Net(nn.BatchNorm1d(8)).eval()

    def of(model: nn.Module, batch: Any) -> Any:
        with torch.no_grad():
            targets = frozen(batch[0])
        return (model(batch[0]) - targets).square().mean(1)

    trial.train(Net(), loss_fn=of)


@works
def criterion_with_parameters(trial: Trial) -> None:
    """A criterion outside the model has parameters, which the same optimizer trains."""
    criterion = nn.Linear(3, 3)

    def make(model: nn.Module) -> Adam:
        return Adam([*model.parameters(), *criterion.parameters()], 0.02)

    def of(model: nn.Module, batch: Any) -> Any:
        return (criterion(model(batch[0])) - batch[1]).square().mean(1)

    trial.train(Net(), make=make, loss_fn=of)


@works
def model_of_the_closure(trial: Trial) -> None:
    """`loss_fn` ignores its argument and calls the model that it knows."""
    model = Net()
    trial.train(model, loss_fn=lambda _, batch: loss_fn(model, batch))


# --- refused --------------------------------------------------------------------------------------


@refused("the model has no wrapped layers; call esper.wrap(model, layers=[...])")
def not_wrapped(trial: Trial) -> None:
    """`esper.wrap` was forgotten."""
    trial.tamiyo(Net(), adam(Net()))


@refused(
    "layer '0' is a LazyLinear that is not initialised: its shape is known after the first "
    "pass; run the model once on a batch before esper.wrap"
)
def lazy_layer(trial: Trial) -> None:
    """The wrapped layer is lazy, and the model has not seen a batch."""
    esper.wrap(nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)), ["0"])


@refused(
    "layer '1' is a LazyLinear that is not initialised: its shape is known after the first "
    "pass; run the model once on a batch before esper.Tamiyo, and before the optimizer"
)
def lazy_layer_elsewhere(trial: Trial) -> None:
    """Another layer of the model is lazy."""
    model = trial.wrap(nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(3)), ["0"])
    trial.tamiyo(model, Adam(model[0].parameters()))  # type: ignore[index]


@refused(
    "layer 'fc1' is on the meta device, where it has shapes and no values; load the weights "
    "onto a device, or call model.to_empty(...) and initialise them, before esper.Tamiyo, "
    "and before the optimizer"
)
def meta_device(trial: Trial) -> None:
    """The model was built on the meta device and has no values yet."""
    with torch.device("meta"):
        model = trial.wrap(Net())
    trial.tamiyo(model, adam(model))


@refused(
    "layer 'fc2' is on the meta device, where it has shapes and no values; load the weights "
    "onto a device, or call model.to_empty(...) and initialise them, before esper.Tamiyo, "
    "and before the optimizer"
)
def partly_on_the_meta_device(trial: Trial) -> None:
    """A layer beside the wrapped one is on the meta device, as one that is offloaded."""
    model = Net()
    model.fc2.to("meta")
    trial.wrap(model)
    trial.tamiyo(model, adam(model))


@refused(
    "loss_fn uses 'head', which is outside the model and changes in every pass, so passes on "
    "the side would change the training; make it a submodule of the model"
)
def head_outside_the_model(trial: Trial) -> None:
    """`loss_fn` calls a head with batch normalisation that is not a part of the model."""
    head = nn.BatchNorm1d(3)
    trial.train(Net(), loss_fn=lambda m, b: (head(m(b[0])) - b[1]).square().mean(1))


@works
def generator_outside_the_model(trial: Trial) -> None:
    """`loss_fn` draws noise from a generator of its own."""
    draws = torch.Generator().manual_seed(0)
    noisy = lambda m, b: loss_fn(m, b) + torch.rand(1, generator=draws) / 99  # noqa: E731
    trial.train(Net(), loss_fn=noisy).plain = False


@refused("layer 'spare' is never called in forward, so it cannot grow; wrap one that is")
def called_by_nobody(trial: Trial) -> None:
    """The wrapped layer is never called."""

    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(6, 3)

    trial.train(Model(), ["spare"])


@refused(
    "layer 'fc1' cannot grow: no loss of the holdout depends on it in training, as under "
    "torch.no_grad, torch.func.vmap or reentrant gradient checkpointing; let gradients reach "
    "it, and call torch.utils.checkpoint.checkpoint with use_reentrant=False"
)
def examples_one_by_one(trial: Trial) -> None:
    """`loss_fn` calls the model under `torch.func.vmap`, example by example."""

    def of(model: nn.Module, batch: Any) -> Any:
        return torch.func.vmap(lambda x, y: (model(x[None])[0] - y).square().mean())(*batch)

    trial.train(Net(), loss_fn=of)
