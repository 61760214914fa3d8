"""Loops: what happens between two batches, and between two evaluations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from typing_extensions import override

from tests.loops.situations import works
from tests.loops.trial import HOLDOUT, TRAIN, Net, Trial, adam, loss_fn


@works
def accumulation(trial: Trial) -> None:
    """Gradients of two batches are added up before each step."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for number, batch in enumerate(TRAIN, start=1):
            (loss_fn(model, batch).mean() / 2).backward()
            if number % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def clipping(trial: Trial) -> None:
    """Gradients are clipped by their norm over `model.parameters()`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def penalty(trial: Trial) -> None:
    """A penalty over `model.parameters()` is added to the loss."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in model.parameters())
            (loss_fn(model, batch).mean() + 0.01 * penalty).backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def log_of_gradient_norms(trial: Trial) -> None:
    """Norms are logged for all parameters: `[p.grad.norm() for p in model.parameters()]`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    norms: list[float] = []
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            norms += [float(p.grad.norm()) for p in model.parameters() if p.requires_grad]  # type: ignore[union-attr]
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    assert min(norms) >= 0


@works
def autocast(trial: Trial) -> None:
    """Mixed precision: autocast to bfloat16 in `loss_fn`."""

    def of(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predictions = model(batch[0])
        return (predictions.float() - batch[1]).square().mean(1)  # type: ignore[no-any-return]

    trial.train(Net(), loss_fn=of)


@works
def autocast_in_the_loop(trial: Trial) -> None:
    """Mixed precision: autocast in the loop alone, and not in `loss_fn`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_fn(model, batch).mean()
            loss.backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def call_within_autocast(trial: Trial) -> None:
    """Mixed precision: autocast surrounds the whole loop, Tamiyo's calls included."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for batch in TRAIN:
                optimizer.zero_grad()
                loss_fn(model, batch).mean().backward()
                optimizer.step()
                tamiyo.on_batch_end(batch)
            tamiyo.on_epoch_end(epoch)


@works
def gradient_scaler(trial: Trial) -> None:
    """Mixed precision: `GradScaler` scales the loss, and clipping follows `unscale_`."""
    model = trial.wrap(Net())
    optimizer, scaler = adam(model), torch.amp.GradScaler("cpu", init_scale=256.0)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_fn(model, batch).mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def gradients_kept_as_zeros(trial: Trial) -> None:
    """Gradients are set to zero and not to `None`: `zero_grad(set_to_none=False)`, by the model."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            model.zero_grad(set_to_none=False)
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def call_before_the_step(trial: Trial) -> None:
    """`on_batch_end` is called between `backward()` and `optimizer.step()`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            tamiyo.on_batch_end(batch)
            optimizer.step()
        tamiyo.on_epoch_end(epoch)


@works
def two_losses(trial: Trial) -> None:
    """Two losses are propagated one after the other, with `retain_graph=True`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            y = model(batch[0])
            (y - batch[1]).square().mean().backward(retain_graph=True)
            (0.1 * y.abs().mean()).backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def gradient_penalty(trial: Trial) -> None:
    """The loss has a gradient with respect to the inputs in it, by `create_graph=True`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for x, y in TRAIN:
            optimizer.zero_grad()
            inputs = x.clone().requires_grad_()
            losses = loss_fn(model, (inputs, y))
            (slope,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
            (losses.mean() + 0.1 * slope.square().sum(1).mean()).backward()
            optimizer.step()
            tamiyo.on_batch_end((x, y))
        tamiyo.on_epoch_end(epoch)


@works
def gradient_penalty_in_the_loss(trial: Trial) -> None:
    """`loss_fn` takes a gradient with respect to its inputs, if `torch.is_grad_enabled()`."""

    def of(model: nn.Module, batch: Any) -> Any:
        inputs = batch[0].clone().requires_grad_(torch.is_grad_enabled())
        y = model(inputs)
        losses = (y - batch[1]).square().mean(1)
        if not torch.is_grad_enabled():
            return losses
        (slope,) = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        return losses + 0.1 * (slope.norm(dim=1) - 1).square()

    trial.train(Net(nn.Tanh()), loss_fn=of)


@works
def gradient_in_the_loss(trial: Trial) -> None:
    """`loss_fn` itself takes a gradient with respect to its inputs, as for forces."""

    def of(model: nn.Module, batch: Any) -> Tensor:
        with torch.enable_grad():
            inputs = batch[0].clone().requires_grad_()
            y = model(inputs)
            (slope,) = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        return (y - batch[1]).square().mean(1) + 0.1 * (slope[:, :3] - batch[1]).square().mean(1)  # type: ignore[no-any-return]

    trial.train(Net(nn.Tanh()), loss_fn=of)


@works
def gradients_switched_by_the_model(trial: Trial) -> None:
    """The model runs its trunk under `torch.set_grad_enabled(self.fine_tune)`."""

    class Model(Net):
        @override
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(True):
                h = torch.relu(self.fc1(x))
            y: Tensor = self.fc2(h)
            return y

    trial.train(Model())


@works
def inputs_that_are_attacked(trial: Trial) -> None:
    """Each batch is trained on twice, the second time with inputs that raise its loss."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for x, y in TRAIN:
            inputs = x.clone().requires_grad_()
            loss_fn(model, (inputs, y)).sum().backward()
            assert inputs.grad is not None
            for part in ((x, y), ((x + 0.1 * inputs.grad.sign()).detach(), y)):
                optimizer.zero_grad()
                loss_fn(model, part).mean().backward()
                optimizer.step()
                tamiyo.on_batch_end(part)
        tamiyo.on_epoch_end(epoch)


@works
def mixed_examples(trial: Trial) -> None:
    """The loop mixes examples (mixup), and hands the plain batch to `on_batch_end`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for x, y in TRAIN:
            share, order = float(torch.rand(())), torch.randperm(len(x))
            mixed = (share * x + (1 - share) * x[order], share * y + (1 - share) * y[order])
            optimizer.zero_grad()
            loss_fn(model, mixed).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end((x, y))
        tamiyo.on_epoch_end(epoch)


@works
def batches_without_a_gradient(trial: Trial) -> None:
    """Batches whose loss is not finite are skipped with `continue`."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    bad = (torch.full((16, 6), torch.nan), TRAIN[0][1])
    for epoch in trial.epochs:
        for batch in (*TRAIN[:2], bad, *TRAIN[2:]):
            optimizer.zero_grad()
            loss = loss_fn(model, batch).mean()
            if not loss.isfinite():
                continue
            loss.backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def evaluation_in_between(trial: Trial) -> None:
    """The model is evaluated after each batch, in `eval()` and under `torch.inference_mode`."""
    model = trial.wrap(Net(nn.BatchNorm1d(8), nn.Dropout(0.2)))
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            model.train()
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            model.eval()
            with torch.inference_mode():
                loss_fn(model, HOLDOUT[0])
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


def called_under(trial: Trial, context: Callable[[], Any]) -> None:
    """Call Tamiyo inside a context, and train outside it."""
    model = trial.wrap(Net(nn.BatchNorm1d(8)))
    optimizer = adam(model)
    with context():
        tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            model.train()
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            with context():
                tamiyo.on_batch_end(batch)
        with context():
            tamiyo.on_epoch_end(epoch)


@works
def calls_without_gradients(trial: Trial) -> None:
    """Tamiyo is made and called under `torch.no_grad()`, as in a function that evaluates."""
    called_under(trial, torch.no_grad)


@works
def calls_in_inference_mode(trial: Trial) -> None:
    """Tamiyo is made and called under `torch.inference_mode()`."""
    called_under(trial, torch.inference_mode)


@works
def trained_in_evaluation_mode(trial: Trial) -> None:
    """The model is trained in evaluation mode throughout."""
    model = trial.wrap(Net(nn.BatchNorm1d(8), nn.Dropout(0.2))).eval()
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def thawed_in_mid_run(trial: Trial) -> None:
    """The trunk is frozen at first; it is thawed later, with `add_param_group`."""
    model: Any = Net()
    model.fc1.requires_grad_(False)
    trial.wrap(model, ["fc2"])
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        if epoch == 2:
            model.fc1.requires_grad_(True)
            optimizer.add_param_group({"params": model.fc1.parameters(), "lr": 0.01})
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)


@works
def several_epochs_for_each_evaluation(trial: Trial) -> None:
    """The model is evaluated after every second epoch, and `on_epoch_end` called then."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in range(2 * len(trial.epochs)):
        for batch in TRAIN[:2]:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        if epoch % 2 == 1:
            tamiyo.on_epoch_end(epoch)


@works
def steps_without_epochs(trial: Trial) -> None:
    """A loop in steps, without epochs, calls `tamiyo.on_evaluation()` when it evaluates."""
    model = trial.wrap(Net())
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for step in range(1, 4 * len(trial.epochs) + 1):
        batch = TRAIN[step % 4]
        optimizer.zero_grad()
        loss_fn(model, batch).mean().backward()
        optimizer.step()
        tamiyo.on_batch_end(batch)
        if step % 4 == 0:
            tamiyo.on_evaluation()


@works
def other_random_draws(trial: Trial) -> None:
    """The loop shuffles by the global random state of PyTorch."""
    model = trial.wrap(Net(nn.Dropout(0.2)))
    optimizer = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        for index in torch.randperm(len(TRAIN)).tolist():
            optimizer.zero_grad()
            loss_fn(model, TRAIN[index]).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(TRAIN[index])
        tamiyo.on_epoch_end(epoch)


@works
def anomaly_detection(trial: Trial) -> None:
    """The loop runs under `torch.autograd.detect_anomaly` and deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(True):
            trial.train(Net())
    finally:
        torch.use_deterministic_algorithms(False)


@works
def default_device_and_type(trial: Trial) -> None:
    """The default type of new tensors is float64, and the model is float32."""
    torch.set_default_dtype(torch.float64)
    try:
        trial.train(Net().float())
    finally:
        torch.set_default_dtype(torch.float32)


@works
def new_optimizer_in_mid_run(trial: Trial) -> None:
    """A second phase of the training makes a new optimizer of `model.parameters()`."""
    model = trial.wrap(Net())
    optimizer: Any = adam(model)
    tamiyo = trial.tamiyo(model, optimizer)
    for epoch in trial.epochs:
        if epoch == 2:
            optimizer = Adam(model.parameters(), lr=0.005)
        for batch in TRAIN:
            optimizer.zero_grad()
            loss_fn(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} <= held


@works
def other_type_in_mid_run(trial: Trial) -> None:
    """The model is converted to float64 in mid-run."""

    def of(model: nn.Module, batch: Any) -> Any:
        x = batch[0].to(next(model.parameters()).dtype)
        return (model(x) - batch[1]).square().mean(1)

    model = trial.wrap(Net())
    optimizer = SGD(model.parameters(), 0.05)
    tamiyo = trial.tamiyo(model, optimizer, loss_fn=of)
    for epoch in trial.epochs:
        if epoch == 2:
            model.double()
        for batch in TRAIN:
            optimizer.zero_grad()
            of(model, batch).mean().backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        tamiyo.on_epoch_end(epoch)
