"""A pretrained network is adapted to other pictures: linear probe, LoRA, grown, fully fine-tuned.

The grown adapter is saved, loaded onto a fresh host, switched off, and merged into plain weights.
Run it: python examples/adapt_pretrained.py        (--steps 40 for a look)
"""

import argparse
import tempfile
from pathlib import Path

import torch

import esper
from esper.tasks import TASKS
from esper.tasks.base import Batches

parser = argparse.ArgumentParser(description="Adapt a pretrained network.")
parser.add_argument("--task", default="transfer_far", choices=["transfer", "transfer_far"])
parser.add_argument("--steps", type=int, default=144)
options = parser.parse_args()

torch.set_num_threads(1)  # the network is small: threads would wait for one another
task = TASKS.create(options.task)  # 240 examples; the host is shipped with Esper, and frozen
holdout = Batches(task.load().validation, 30)


def batches():
    """Training batches, epoch after epoch, each time in a new order."""
    epoch, left = 0, options.steps
    while left > 0:
        for batch in list(task.train_batches(epoch, 0))[:left]:
            left -= 1
            yield batch
        epoch += 1


def train(model, optimizer, on_batch_end=lambda batch: None):
    """Train as anybody would; the rate falls along a cosine."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for batch in batches():
        optimizer.zero_grad()
        task.loss_fn(model, batch).mean().backward()
        optimizer.step()
        on_batch_end(batch)
        schedule.step()
    return model.eval()


def tell(name, model, trained):
    """One row: loss and accuracy on test data."""
    with torch.no_grad():
        loss = task.loss_fn(model, task.load().test).mean().item()
        accuracy = task.accuracy_fn(model, task.load().test).mean().item()
    print(f"{name:<28} {trained:>7,} {loss:>8.4f} {accuracy:>7.1%}", flush=True)


def head_of(model):
    """Optimizer over what is trainable."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


print(f"{options.task:<28} trained     loss accuracy")
probe = task.host(0)
tell("linear probe", train(probe, head_of(probe)), 490)

lora = task.host(0, width=2)  # a low-rank map of rank 1 beside every linear layer
tell("LoRA, rank 1", train(lora, head_of(lora)), 490 + 2592)

models = {}
for name, budget in (("grown, a third of LoRA", 0.33), ("grown, as many as LoRA", 1.0)):
    model = task.host(0)
    optimizer = head_of(model)
    tamiyo = esper.adapt(
        model, optimizer=optimizer, loss_fn=task.loss_fn, holdout=holdout, budget=budget
    )
    train(model, optimizer, tamiyo.on_batch_end)
    tamiyo.finish()
    tell(name, model, 490 + tamiyo.used)
    models[name] = model

full = task.host(0).requires_grad_(True)
tell("full fine-tuning", train(full, torch.optim.AdamW(full.parameters(), lr=2e-3)), 88570)

print()
inputs = task.load().test[0][:50]
esper.print_trainable_parameters(model)
print(esper.adapter_report(model, loss_fn=task.loss_fn, holdout=holdout))
with tempfile.TemporaryDirectory() as place, torch.no_grad():
    folder = esper.save_adapter(model, Path(place, "adapter"))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"saved: {size:,} bytes of weights, {size / (4 * (490 + tamiyo.used)):.2f} x parameters")

    fresh = task.host(0)
    before = fresh(inputs)
    esper.load_adapter(fresh, folder)
    same = torch.equal(fresh.eval()(inputs), model(inputs))
    print(f"loaded onto a fresh host: outputs are {'equal, bit for bit' if same else 'DIFFERENT'}")

    with esper.disabled(fresh):
        same = torch.equal(fresh(inputs), before)
    print(f"switched off: the host is {'what it was, bit for bit' if same else 'CHANGED'}")

    plain = esper.merge(model)
    difference = (plain(inputs) - model(inputs)).abs().max().item()
    print(f"merged: a plain {type(plain).__name__}, outputs within {difference:.0e}")
    assert same
    assert difference < 1e-4
