"""Settings from a YAML file: every key and value checked, every mistake named with its place."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from esper.contracts.config import AbTest, Config, SeedSelection
from esper.contracts.errors import ConfigError, unknown_name
from esper.services.tamiyo.policies import POLICIES
from esper.strategies import STRATEGIES

__all__ = ["config_from", "load_config", "parse_yaml"]

_MOST_NODES, _MOST_CHARACTERS = 100_000, 1_000_000

_NO_MAPPING = ("dict_type", "model_type", "dataclass_type", "dataclass_exact_type")


def load_config(path: str | PathLike[str], *, defaults: Mapping[str, Any] | None = None) -> Config:
    """Read settings from a YAML file; what it leaves out has its default.

    Args:
        path: The file.
        defaults: Sections of settings that hold where the file says nothing, key by key.

    Raises:
        ConfigError: if the file cannot be read, is not YAML, or a key or value is wrong; the
            message gives the file, the path of the key and what would be right.
    """
    place = fspath(path)
    try:
        with Path(place).open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)  # a device may go on for ever
        data = parse_yaml(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{place}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is not YAML: {_yaml_problem(error)}") from error
    if defaults and isinstance(data, Mapping | None):
        data = _laid_over(defaults, data or {})
    return config_from(data, source=place)


def parse_yaml(text: str) -> Any:
    """Parse YAML of a reasonable size, also once its aliases are written out.

    Raises:
        yaml.YAMLError: if it is no YAML, too deep or too large, or holds a key twice or a number
            that cannot be.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {_MOST_CHARACTERS:,} characters")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _require_keys_once(root, set())
        if root is not None and _size(root, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"it has more than {_MOST_NODES:,} parts, aliases written out")
        return yaml.safe_load(text)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply, or in itself") from error
    except ValueError as error:
        raise yaml.YAMLError(f"it holds a value that cannot be read: {error}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of nodes, aliases written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # an alias of itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _require_keys_once(node: yaml.Node | None, known: set[int]) -> None:
    """Refuse mappings that hold a key twice, of which the last would win in silence."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in known:
        return
    known.add(id(node))
    inside, keys = node.value, set[tuple[str, str]]()
    if isinstance(node, yaml.MappingNode):
        inside = [value for _, value in node.value]
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in keys:
                problem = f"key {key.value!r} is given twice; leave one out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add((key.tag, key.value))
    for one in inside:
        _require_keys_once(one, known)


def config_from(data: object, *, source: str = "settings") -> Config:
    """Check settings that were read already.

    Args:
        data: A mapping of sections, as ``yaml.safe_load`` gives it; ``None`` is an empty one.
        source: Where it came from, for messages.

    Raises:
        ConfigError: as `load_config`.

    Example:
        >>> config_from({"seed_selection": {"strategy": "thompson"}}).seed_selection.strategy
        'thompson'
        >>> config_from({"reward": {"kid": "delta"}})
        Traceback (most recent call last):
        ...
        esper.contracts.errors.ConfigError: settings: unknown key in reward: 'kid'; known: kind, \
rent_per_kparam, rent_per_ms. Did you mean 'kind'?
    """
    sections = _mapping(data, source, "the file")
    try:
        config = Config.model_validate(_without_empty(sections, Config))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_in_words(error)}") from error
    if config.policy not in POLICIES.names():
        raise ConfigError(f"{source}: {unknown_name('policy', config.policy, POLICIES.names())}")
    _check_strategies(config.seed_selection, source)
    _check_arms(config.ab_test, source)
    return config


def _laid_over(below: Mapping[str, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    """Both, section by section; where both have a value, that of ``above``."""
    made = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping | None):
            made[key] = _laid_over(below[key], above[key] or {})
    return made


def _yaml_problem(error: yaml.YAMLError) -> str:
    """On one line; marks, which quote the file, take several."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    context = f"{error.context}: " if error.context else ""
    return f"{context}{error.problem}, in line {mark.line + 1}, column {mark.column + 1}"


def _mapping(data: object, source: str, what: str) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: {what} is {data!r}; it must be a mapping of keys to values")
    for key in data:
        if not isinstance(key, str):
            raise ConfigError(f"{source}: key {key!r} in {what} is not a word; keys are names")
    return dict(data)


def _without_empty(sections: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A section with nothing in it (``constraints:``) is a section of defaults."""
    kept = {}
    for key, value in sections.items():
        section: Any = model.model_fields[key].annotation if key in model.model_fields else None
        nested = isinstance(section, type) and issubclass(section, BaseModel)
        if value is None and (nested or is_dataclass(section)):
            continue
        kept[key] = _without_empty(value, section) if nested and isinstance(value, dict) else value
    return kept


def _in_words(error: ValidationError) -> str:
    return "; ".join([_mistake(dict(detail)) for detail in error.errors(include_url=False)])


def _mistake(detail: dict[str, Any]) -> str:
    *parents, last = detail["loc"] or ("the file",)
    place = ".".join([str(part) for part in parents])
    path = ".".join([str(part) for part in detail["loc"]])
    value = detail["input"]
    wanted = detail["msg"].removeprefix("Input should be ")
    text = f"{path} is {value!r}; it must be {wanted}"
    if detail["type"] == "extra_forbidden":
        kind = f"key in {place}:" if place else "key"
        text = unknown_name(kind, last, _known_keys(parents))
    elif detail["type"] == "missing":
        text = f"{path} is missing{_meaning(parents, last)}"
    elif last == "[key]":  # of a mapping whose keys are the user's
        text = f"key {value!r} in {'.'.join(map(str, parents[:-1]))} is not a word; keys are names"
    elif detail["type"] == "invalid_key":
        text = f"key {last!r} in {place} is not a word; keys are names"
    elif detail["type"] == "string_too_short":
        text = f"{path} is empty; it must be a name"
    elif detail["type"] == "value_error":  # an error of ours, which names the setting
        error = str(detail["ctx"]["error"])
        text = f"{place}: {error}" if place else error
    elif detail["type"] in _NO_MAPPING:
        text = f"{path} is {value!r}; it must be a mapping of keys to values"
    return text


def _known_keys(parents: list[Any]) -> list[str]:
    return list(_model(parents).model_fields)


def _meaning(parents: list[Any], last: object) -> str:
    """Description of a setting, in brackets, where there is one."""
    known = _model(parents).model_fields.get(str(last))
    return f" ({known.description})" if known and known.description else ""


def _model(parents: list[Any]) -> type[BaseModel]:
    """The section that a path of keys leads to."""
    section: Any = Config
    for name in parents:
        inside = getattr(section, "model_fields", {}).get(name)
        section = _section(inside.annotation if inside else get_args(section)[-1])
    model: type[BaseModel] = section
    return model


def _section(annotation: Any) -> Any:
    """Class of a section, optional or not."""
    if get_origin(annotation) is UnionType:
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _check_strategies(selection: SeedSelection, source: str) -> None:
    names = STRATEGIES.names()
    for key in selection.model_extra or {}:
        if key not in names:
            known = [*SeedSelection.model_fields, *names]
            raise ConfigError(f"{source}: {unknown_name('key in seed_selection:', key, known)}")
    if selection.strategy not in names:
        problem = unknown_name("strategy", selection.strategy, names)
        raise ConfigError(f"{source}: seed_selection.strategy: {problem}")
    for name, section in (selection.model_extra or {}).items():
        place = f"seed_selection.{name}"
        values = _mapping(section, source, place)
        strategy = STRATEGIES.load(name)
        known = [item.name for item in fields(strategy)] if is_dataclass(strategy) else []
        for key in values:
            if key not in known:
                raise ConfigError(f"{source}: {unknown_name(f'key in {place}:', key, known)}")
        try:
            STRATEGIES.create(name, **values)
        except ConfigError as error:
            raise ConfigError(f"{source}: seed_selection: {error}") from error


def _check_arms(test: AbTest | None, source: str) -> None:
    for name, arm in ({} if test is None else test.arms).items():
        try:
            STRATEGIES.create(arm.strategy, **arm.settings)
        except ConfigError as error:
            raise ConfigError(f"{source}: ab_test.arms.{name}: {error}") from error
