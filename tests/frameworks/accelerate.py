"""A toy in a loop with an Accelerator."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from esper.integrations.accelerate import Growth
from esper.testing import integration_laws as laws
from esper.testing.integration_laws import Toy, Trained
from tests.frameworks import loader, rate


def train(toy: Toy, folder: Path) -> Trained:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if toy.bfloat16 else "no",
        gradient_accumulation_steps=toy.accumulate,
    )
    model: Any = toy.model()
    optimizer: Any = laws.adam(model)
    average = laws.averaged(model) if toy.average else None
    batches: Any = loader(toy.train)
    made = accelerator.prepare(model, optimizer, batches, rate(toy)(optimizer))
    model, optimizer, batches, scheduler = made
    growth = Growth(accelerator, model, optimizer, scheduler=scheduler, **toy.growth)
    done = 0
    if toy.resume:
        accelerator.load_state(str(folder))
        done = int((folder / "batches").read_text())
    each = len(batches)  # of this process
    last = toy.batches or toy.epochs * each
    while done < last:
        model.train()
        left = accelerator.skip_first_batches(batches, done % each)
        for batch in growth.epoch(left):
            with accelerator.accumulate(model):
                accelerator.backward(laws.cast(toy)(model, batch).mean())
                if toy.clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), laws.CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                if average is not None and accelerator.sync_gradients:
                    average.update_parameters(model)
            done += 1
            if done == toy.batches:
                break
    accelerator.save_state(str(folder))
    (folder / "batches").write_text(str(done))
    return laws.trained(growth, accelerator.unwrap_model(model), optimizer, average)
