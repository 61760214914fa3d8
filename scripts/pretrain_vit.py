"""Pretrain the host of the tasks ``transfer`` and ``transfer_far``; run once, it is committed.

::

    python scripts/pretrain_vit.py src/esper/tasks/data/vit.safetensors

It learns the training part of ``mnist5k`` (3,000 pictures, shifted by up to two pixels) in half a
minute on one thread. The file has the weights without the head, as float16.
"""
# ruff: noqa: T201

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from esper.tasks.data_files import load_standardised
from esper.tasks.vit import VisionTransformer

EPOCHS, BATCH, RATE, DECAY, SHIFT = 14, 64, 4e-3, 0.05, 2

# B batch, C channels, H height, W width


def shifted(x_BCHW: Tensor, background: float) -> Tensor:
    """Pictures, each moved by up to ``SHIFT`` pixels."""
    padded = F.pad(x_BCHW, (SHIFT,) * 4, value=background)
    moves = torch.randint(0, 2 * SHIFT + 1, (len(x_BCHW), 2)).tolist()
    return torch.stack(
        [x[:, i : i + 28, j : j + 28] for x, (i, j) in zip(padded, moves, strict=True)]
    )


def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Share of the examples whose class is scored highest."""
    with torch.no_grad():
        return float((model(part[0]).argmax(1) == part[1]).float().mean())


def main() -> None:
    """Train, write, and print what was written."""
    parser = argparse.ArgumentParser(description="Pretrain the host of the transfer tasks.")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_standardised("mnist5k", each_feature=False)
    inputs, targets = data.train
    model, steps = VisionTransformer(), EPOCHS * (len(targets) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(targets))[: steps // EPOCHS * BATCH].split(BATCH):
            batch = shifted(inputs[chosen], float(inputs.min()))
            optimizer.zero_grad()
            F.cross_entropy(model(batch), targets[chosen]).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: validation accuracy {accuracy(model, data.validation):.1%}")
    print(f"test accuracy {accuracy(model, data.test):.1%}")
    kept = {n: v.half() for n, v in model.state_dict().items() if not n.startswith("head.")}
    save_file(kept, out)
    data_bytes = out.read_bytes()
    print(f"{out}: {len(data_bytes)} bytes, sha256 {hashlib.sha256(data_bytes).hexdigest()}")


if __name__ == "__main__":
    main()
