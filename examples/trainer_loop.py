"""A transformer that grows in a Trainer of Hugging Face: one line, ``Growth(trainer, ...)``."""

import tempfile

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

import esper
from esper.integrations.transformers import Growth

set_seed(0)
words = torch.randint(0, 20, (1280, 12))
labels = (words == 3).any(1).long() + (words == 7).any(1).long()  # which of two words are there
data = [{"input_ids": w, "labels": y} for w, y in zip(words, labels.tolist(), strict=True)]
config = BertConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,  # far too few, on purpose
    num_labels=3,
    max_position_embeddings=16,
)
model = BertForSequenceClassification(config)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=8,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data[:1024], eval_dataset=data[1024:])
    growth = Growth(trainer, layers=["*.intermediate", "*.output.dense"])
    trainer.train()
    print(growth.report)

    model.save_pretrained(folder)
    again = esper.from_pretrained(folder)
    equal = torch.equal(again(words).logits, model.eval()(words).logits)
    print("saved and loaded: outputs are", "equal" if equal else "different")
