"""Damage to files, drawn from a seed: what disks, power cuts, editors and other programs do."""

import json
from collections.abc import Callable, Iterator
from random import Random  # noqa: TID251 (seeded)
from typing import Any

_WRONG: tuple[Any, ...] = (
    None, True, -1, 10**400, 1e308, 2**63, "", "x", "\ud800", [], {}, [[]], {"a": 1}, [None], "1",
)  # fmt: skip


def damages(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged copies of a file, each unlike it, with the name of the damage."""
    random = Random(seed)
    kinds = [*_OF_BYTES, *(_OF_JSON if _is_json(content) else ())]
    made = 0
    while made < count:
        kind = kinds[made % len(kinds)]
        damaged = kind(random, content)
        if damaged != content:
            yield kind.__name__.strip("_"), damaged
            made += 1
        else:  # as zeros over zeros
            kinds = kinds[1:] + kinds[:1]


def _bit_flip(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _many_flips(random: Random, content: bytes) -> bytes:
    for _ in range(random.randrange(2, 40)):
        content = _bit_flip(random, content)
    return content


def _truncation(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content))]


def _block(random: Random, content: bytes) -> slice:
    size = min(random.choice([1, 8, 64, 512, 4096]), max(1, len(content) // 2))
    start = random.randrange(max(1, len(content) - size))
    if random.random() < 0.5:
        start -= start % size  # as blocks of a disk lie
    return slice(start, start + size)


def _zero_block(random: Random, content: bytes) -> bytes:
    place = _block(random, content)
    return content[: place.start] + bytes(len(content[place])) + content[place.stop :]


def _random_block(random: Random, content: bytes) -> bytes:
    place = _block(random, content)
    return content[: place.start] + random.randbytes(len(content[place])) + content[place.stop :]


def _swapped_blocks(random: Random, content: bytes) -> bytes:
    size = min(random.choice([1, 16, 512, 4096]), len(content) // 3 or 1)
    first, second = sorted(random.sample(range(max(2, len(content) // size)), 2))
    changed = bytearray(content)
    one = changed[first * size : (first + 1) * size]
    other = changed[second * size : (second + 1) * size]
    changed[second * size : second * size + len(one)] = one
    changed[first * size : first * size + len(other)] = other
    return bytes(changed)


def _doubled_block(random: Random, content: bytes) -> bytes:
    place = _block(random, content)
    return content[: place.stop] + content[place] + content[place.stop :]


def _cut_out_block(random: Random, content: bytes) -> bytes:
    place = _block(random, content)
    return content[: place.start] + content[place.stop :]


def _appended(random: Random, content: bytes) -> bytes:
    return content + random.choice([b"\0" * 512, b"x", content[: random.randrange(99)], b"\n{}\n"])


_OF_BYTES: list[Callable[[Random, bytes], bytes]] = [
    _bit_flip, _many_flips, _truncation, _zero_block, _random_block, _swapped_blocks,
    _doubled_block, _cut_out_block, _appended, _bit_flip,
]  # fmt: skip


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _changed(random: Random, content: bytes, change: Callable[[Any, Any], None]) -> bytes:
    data = json.loads(content)
    *path, key = random.choice(list(_places(data)))
    inside = data
    for step in path:
        inside = inside[step]
    change(inside, key)
    return json.dumps(data).encode()


def _wrong_type(random: Random, content: bytes) -> bytes:
    def change(inside: Any, key: Any) -> None:
        inside[key] = random.choice(_WRONG)

    return _changed(random, content, change)


def _missing_key(random: Random, content: bytes) -> bytes:
    def change(inside: Any, key: Any) -> None:
        del inside[key]

    return _changed(random, content, change)


def _not_a_number(random: Random, content: bytes) -> bytes:
    def change(inside: Any, key: Any) -> None:
        inside[key] = random.choice([float("nan"), float("inf")])

    return _changed(random, content, change)


_OF_JSON = [_wrong_type, _missing_key, _not_a_number, _wrong_type]
