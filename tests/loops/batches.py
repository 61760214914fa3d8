"""Batches of every kind, and losses of every shape."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from tests.loops.situations import refused, works
from tests.loops.trial import HOLDOUT, TRAIN, Net, Trial, loss_fn


def dictionaries(batches: Any = TRAIN, key: str = "labels") -> list[dict[str, Tensor]]:
    return [{"x": x, key: y} for x, y in batches]


def of_dictionary(model: nn.Module, batch: Any) -> Any:
    return loss_fn(model, (batch["x"], batch["labels"]))


@works
def tuples(trial: Trial) -> None:
    """A batch is a tuple of tensors."""
    trial.train(Net())


@works
def dictionary(trial: Trial) -> None:
    """A batch is a dictionary of tensors."""
    trial.train(Net(), loss_fn=of_dictionary, batches=dictionaries(), holdout=dictionaries(HOLDOUT))


class Encoding(UserDict[str, Tensor]):
    """As a tokenizer of Hugging Face gives it: entries are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self.data:
            return self.data[name]
        raise AttributeError(name)


@works
def batch_encoding(trial: Trial) -> None:
    """A batch is a `UserDict` whose entries are attributes, as Hugging Face's `BatchEncoding`."""

    def of(model: nn.Module, batch: Encoding) -> Any:
        return loss_fn(model, (batch.x, batch["labels"]))

    train, held_out = ([Encoding(d) for d in dictionaries(part)] for part in (TRAIN, HOLDOUT))
    trial.train(Net(), loss_fn=of, batches=train, holdout=held_out)


@dataclass
class Example:
    x: Tensor
    y: Tensor


@works
def data_class(trial: Trial) -> None:
    """A batch is an instance of a dataclass."""

    def of(model: nn.Module, batch: Example) -> Any:
        return loss_fn(model, (batch.x, batch.y))

    train, held_out = ([Example(*pair) for pair in part] for part in (TRAIN, HOLDOUT))
    trial.train(Net(), loss_fn=of, batches=train, holdout=held_out)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@works
def named_tuple(trial: Trial) -> None:
    """A batch is a named tuple."""

    def of(model: nn.Module, batch: Pair) -> Any:
        return loss_fn(model, (batch.x, batch.y))

    train, held_out = ([Pair(*pair) for pair in part] for part in (TRAIN, HOLDOUT))
    trial.train(Net(), loss_fn=of, batches=train, holdout=held_out)


@works
def bare_tensor(trial: Trial) -> None:
    """A batch is one tensor, of an autoencoder."""

    def of(model: nn.Module, batch: Tensor) -> Any:
        return (model(batch) - batch[:, :3]).square().mean(1)

    train, held_out = ([x for x, _ in part] for part in (TRAIN, HOLDOUT))
    trial.train(Net(), loss_fn=of, batches=train, holdout=held_out)


@works
def indices(trial: Trial) -> None:
    """A batch is a tensor of indices into data that lie elsewhere."""
    inputs, targets = (torch.cat(part) for part in zip(*TRAIN, *HOLDOUT, strict=True))

    def of(model: nn.Module, batch: Tensor) -> Any:
        return loss_fn(model, (inputs[batch], targets[batch]))

    held_out = [torch.arange(64, 112)]
    trial.train(Net(), loss_fn=of, batches=torch.split(torch.arange(64), 16), holdout=held_out)


@works
def arrays_of_numpy(trial: Trial) -> None:
    """A batch is a list of NumPy arrays, which `loss_fn` makes tensors of."""

    def of(model: nn.Module, batch: Any) -> Any:
        return loss_fn(model, [torch.as_tensor(part) for part in batch])

    train, held_out = ([[x.numpy(), y.numpy()] for x, y in part] for part in (TRAIN, HOLDOUT))
    trial.train(Net(), loss_fn=of, batches=train, holdout=held_out)


@works
def nested(trial: Trial) -> None:
    """A batch is a dictionary of lists of dictionaries, with strings and numbers in between."""

    def of(model: nn.Module, batch: Any) -> Any:
        (view,) = batch["views"]
        return float(batch["weight"]) * loss_fn(model, (view["x"], batch["y"]))

    def nest(part: Any) -> list[Any]:
        return [{"views": [{"x": x, "name": "a"}], "y": y, "weight": 2} for x, y in part]

    trial.train(Net(), loss_fn=of, batches=nest(TRAIN), holdout=nest(HOLDOUT))


@works
def examples_of_other_sizes(trial: Trial) -> None:
    """A batch is a list of examples of different lengths, which `loss_fn` pads."""

    def ragged(part: Any) -> list[Any]:
        return [[(row[: 3 + i % 4], y[i]) for i, row in enumerate(x)] for x, y in part]

    def of(model: nn.Module, batch: Any) -> Any:
        rows, targets = zip(*batch, strict=True)
        padded = torch.stack([F.pad(row, (0, 6 - len(row))) for row in rows])
        return loss_fn(model, (padded, torch.stack(targets)))

    trial.train(Net(), loss_fn=of, batches=ragged(TRAIN), holdout=ragged(HOLDOUT))


# --- what a loss function does to its batch -------------------------------------------------------


@works
def popped_labels(trial: Trial) -> None:
    """`loss_fn` takes the labels out of its batch: `batch.pop("labels")`."""

    def of(model: nn.Module, batch: dict[str, Tensor]) -> Any:
        labels = batch.pop("labels")
        return loss_fn(model, (batch["x"], labels))

    held_out = dictionaries(HOLDOUT)
    trial.train(Net(), loss_fn=of, batches=dictionaries(), holdout=held_out)
    assert all(sorted(batch) == ["labels", "x"] for batch in held_out)


@works
def normalised_in_place(trial: Trial) -> None:
    """`loss_fn` normalises its inputs in place: `batch[0].sub_(mean).div_(sd)`."""

    def of(model: nn.Module, batch: Any) -> Any:
        batch[0].sub_(0.5).div_(2.0)
        return loss_fn(model, batch)

    held_out = [(x.clone(), y) for x, y in HOLDOUT]
    trial.train(Net(), loss_fn=of, holdout=held_out)
    assert all(
        torch.equal(x, theirs) for (x, _), (theirs, _) in zip(held_out, HOLDOUT, strict=True)
    )


@works
def moved_to_the_device(trial: Trial) -> None:
    """`loss_fn` replaces the entries of its batch: `batch[k] = batch[k].to(device)`."""

    def of(model: nn.Module, batch: dict[str, Tensor]) -> Any:
        for key, part in batch.items():
            batch[key] = part.double().float()
        return of_dictionary(model, batch)

    trial.train(Net(), loss_fn=of, batches=dictionaries(), holdout=dictionaries(HOLDOUT))


@works
def noise_in_place(trial: Trial) -> None:
    """`loss_fn` adds noise to its inputs in place while the model trains."""

    def of(model: nn.Module, batch: Any) -> Any:
        if model.training:
            batch[0].add_(0.1 * torch.randn_like(batch[0]))
        return loss_fn(model, batch)

    trial.train(Net(), loss_fn=of)


# --- losses ---------------------------------------------------------------------------------------


@works
def last_batch_of_one(trial: Trial) -> None:
    """The last batch has one example, and `.squeeze()` makes its loss a number, of shape ()."""

    def of(model: nn.Module, batch: Any) -> Any:
        return loss_fn(model, batch).squeeze()

    ones = [(x[:1], y[:1]) for x, y in TRAIN[:1]]
    trial.train(Net(), loss_fn=of, batches=[*TRAIN, *ones], holdout=[*HOLDOUT, *ones])


class Tagger(nn.Module):
    """One of three tags for every token, (B, T) to (B, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.fc1 = nn.Linear(8, 8)
        self.fc2 = nn.Linear(8, 3)

    @override
    def forward(self, tokens_BT: Tensor) -> Tensor:
        h = self.embedding(tokens_BT)
        y: Tensor = self.fc2(h + torch.relu(self.fc1(h)))
        return y


def sentences(count: int, start: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Tokens (16, 5), tags (16, 5) and mask (16, 5), with sentences of no token at all."""
    draws = torch.Generator().manual_seed(start)
    made = []
    for _ in range(count):
        tokens = torch.randint(1, 9, (16, 5), generator=draws)
        mask = torch.arange(5) < torch.randint(0, 6, (16, 1), generator=draws)
        made.append((tokens * mask, tokens % 3, mask))
    return made


def token_losses(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none")


@works
def losses_per_token(trial: Trial) -> None:
    """`loss_fn` gives a loss per token, shape (B, T)."""
    train, held_out = sentences(4, 1), sentences(2, 2)
    trial.train(Tagger(), loss_fn=token_losses, batches=train, holdout=held_out)


@works
def losses_per_token_with_mask(trial: Trial) -> None:
    """`loss_fn` gives a loss per token and the mask, `(losses, mask)`, both (B, T)."""

    def of(model: nn.Module, batch: Any) -> Any:
        return token_losses(model, batch), batch[2]

    model = trial.wrap(Tagger())
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    held_out = sentences(2, 2)
    tamiyo = trial.tamiyo(model, optimizer, loss_fn=of, holdout=held_out)
    for epoch in trial.epochs:
        model.train()
        for batch in sentences(4, 1):
            optimizer.zero_grad()
            losses, mask = of(model, batch)
            ((losses * mask).sum() / mask.sum()).backward()
            optimizer.step()
            tamiyo.on_batch_end(batch)
        found = tamiyo.on_epoch_end(epoch)
        if trial.grown:
            with torch.no_grad():
                pairs = [of(model.eval(), batch) for batch in held_out]
            each = [
                row[m].mean()
                for losses, mask in pairs
                for row, m in zip(losses, mask, strict=True)
                if m.any()
            ]
            assert abs(found - float(torch.stack(each).mean())) < 1e-5


@works
def contrast_within_the_batch(trial: Trial) -> None:
    """The loss of an example depends on the others of its batch, as in contrastive learning."""

    def of(model: nn.Module, batch: Any) -> Tensor:
        views = F.normalize(model(batch[0]), dim=1), F.normalize(batch[1], dim=1)
        return F.cross_entropy(
            views[0] @ views[1].T / 0.2, torch.arange(len(batch[0])), reduction="none"
        )

    trial.train(Net(), loss_fn=of)


@refused(
    "loss_fn(model, batch) returned one number, as a mean of the batch; it must return one loss "
    "per example, shape (B,): use reduction='none' and take the mean in your own loop. Losses per "
    "token, shape (B, T), go with their mask: (losses, mask)"
)
def mean_loss(trial: Trial) -> None:
    """`loss_fn` gives the mean over the batch, a number."""
    trial.train(Net(), loss_fn=lambda model, batch: loss_fn(model, batch).mean())


@refused(
    "loss_fn(model, batch) returned (24, 24), as predictions (B, 1) against targets (B,) do; "
    "it must return one loss per example, shape (B,), or losses per token with their mask: "
    "(losses, mask), both (B, T)"
)
def square_of_losses(trial: Trial) -> None:
    """`loss_fn` broadcasts predictions (B, 1) against targets (B,)."""
    trial.train(
        Net(), loss_fn=lambda model, batch: (model(batch[0])[:, :1] - batch[1][:, 0]).square()
    )


@refused(
    "loss_fn(model, batch) returned dict; it must return one loss per example, shape (B,): "
    "use reduction='none' and take the mean in your own loop. Losses per token, shape (B, "
    "T), go with their mask: (losses, mask)"
)
def loss_of_a_trainer(trial: Trial) -> None:
    """`loss_fn` gives the dictionary that a model of Hugging Face returns."""
    trial.train(Net(), loss_fn=lambda model, batch: {"loss": loss_fn(model, batch).mean()})


@refused(
    "the model fails on a batch of the holdout, tuple of (24, 6), (24, 3): tuple indices must be "
    "integers or slices, not str. Nothing was changed; loss_fn(model, batch) must run on every "
    "batch that iterating over the holdout gives"
)
def broken_loss(trial: Trial) -> None:
    """`loss_fn` fails on the first batch of the holdout."""
    trial.train(Net(), loss_fn=lambda model, batch: loss_fn(model, (batch["x"], batch["y"])))
