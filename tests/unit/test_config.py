"""The document's YAML, and every mistake that can be made in it."""

from pathlib import Path

import pytest

import esper
from esper.contracts.config import Config
from esper.contracts.errors import ConfigError
from esper.contracts.selection import SelectionConstraints
from esper.strategies import STRATEGIES

DOCUMENT = """\
seed_selection:
  strategy: "ucb"  # ucb, thompson, epsilon_greedy, performance_weighted

  ucb:
    exploration_constant: 2.0

  thompson:
    prior_alpha: 1.0
    prior_beta: 1.0

  epsilon_greedy:
    epsilon: 0.1
    decay_rate: 0.995

  performance:
    window_size: 20
    decay_factor: 0.9

  constraints:
    min_dormant_epochs: 5      # Cooldown between activations
    max_concurrent_seeds: 2    # Per layer limit
    fallback_to_zero: true     # Use seed 0 if selection fails
"""


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "esper.yaml"
    path.write_text(text, encoding="utf-8")
    return esper.load_config(path)


def test_the_document_is_accepted_word_for_word(tmp_path: Path) -> None:
    config = load(tmp_path, DOCUMENT)
    selection = config.seed_selection
    assert selection.strategy == "ucb"
    assert selection.settings_of("ucb") == {"exploration_constant": 2.0}
    assert selection.settings_of("thompson") == {"prior_alpha": 1.0, "prior_beta": 1.0}
    assert selection.settings_of("epsilon_greedy") == {"epsilon": 0.1, "decay_rate": 0.995}
    assert selection.settings_of("performance_weighted") == {}
    assert selection.performance.window_size == 20
    assert selection.performance.decay_factor == 0.9
    assert selection.constraints == SelectionConstraints(5, 2, True)
    for name in STRATEGIES.names():
        STRATEGIES.create(name, **selection.settings_of(name))


@pytest.mark.parametrize(
    "text", ["", "seed_selection:", "seed_selection:\n  constraints:\n  performance:\n  ucb:\n"]
)
def test_what_is_left_out_has_its_default(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    assert config.growth == Config().growth
    assert config.seed_selection.constraints == SelectionConstraints()
    assert config.seed_selection.settings_of("ucb") == {}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sed_selection: {}", ["'sed_selection'", "Did you mean 'seed_selection'?"]),
        (
            "seed_selection: {constraints: {min_dormant_epoch: 3}}",
            ["seed_selection: ", "constraints: 'min_dormant_epoch'", "'min_dormant_epochs'?"],
        ),
        (
            "seed_selection: {constraints: {min_dormant_epochs: -3}}",
            ["constraints.min_dormant_epochs is -3", ">= 0"],
        ),
        (
            "seed_selection: {constraints: {max_concurrent_seeds: two}}",
            ["constraints.max_concurrent_seeds is 'two'", ">= 1"],
        ),
        (
            "seed_selection: {constraints: {fallback_to_zero: 1}}",
            ["constraints.fallback_to_zero is 1", "true or false"],
        ),
        ("seed_selection: {constraints: [1]}", ["seed_selection.constraints", "a mapping"]),
        (
            "seed_selection: {strategy: thomson}",
            ["seed_selection.strategy: unknown strategy 'thomson'", "Did you mean 'thompson'?"],
        ),
        ("seed_selection: {strategy: 3}", ["seed_selection.strategy is 3", "a valid string"]),
        (
            "seed_selection: {usb: {}}",
            ["unknown key in seed_selection: 'usb'", "Did you mean 'ucb'?"],
        ),
        (
            "seed_selection: {strategy: ucb, thompson: {prior_alfa: 1}}",
            ["seed_selection.thompson: 'prior_alfa'", "Did you mean 'prior_alpha'?"],
        ),
        ("seed_selection: {thompson: {prior_alpha: 0}}", ["thompson.prior_alpha is 0", "> 0"]),
        ("seed_selection: {thompson: 3}", ["seed_selection.thompson is 3", "a mapping"]),
        (
            "seed_selection: {performance: {window_size: 0}}",
            ["seed_selection.performance.window_size is 0", "greater than or equal to 1"],
        ),
        (
            "seed_selection: {performance: {widow_size: 5}}",
            ["seed_selection.performance: 'widow_size'", "Did you mean 'window_size'?"],
        ),
        ("seed_selection: 5", ["seed_selection is 5", "a mapping"]),
        ("reward: {kind: naive}", ["reward.kind is 'naive'", "'counterfactual' or 'delta'"]),
        ("reward: {rent_per_ms: .nan}", ["reward.rent_per_ms is nan"]),
        ("growth: {budget: 1.5}", ["growth.budget is 1.5", "a valid integer"]),
        ("growth: {bugdet: 5}", ["growth: 'bugdet'", "Did you mean 'budget'?"]),
        ("seed_selection: {1: 2}", ["key 1 in seed_selection"]),
        ("1: 2", ["key 1"]),
        ("[1]", ["the file is [1]", "a mapping"]),
        ("a: b: c", ["is not YAML", "line 1"]),
        ("a: [", ["is not YAML: while parsing a flow node: ", "in line 1, column 5"]),
        ("ab_test: {arms: [ucb, auto]}", ["ab_test.arms is ['ucb', 'auto']", "a mapping of keys"]),
        ("ab_test: {unit: run}", ["ab_test.salt is missing (name of the test; another salt"]),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, wanted: list[str]) -> None:
    with pytest.raises(esper.ConfigError) as refused:
        load(tmp_path, text)
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "esper.yaml"))
    for part in wanted:
        assert part in message
    assert "pydantic" not in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(esper.ConfigError, match="there is no such file"):
        esper.load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(esper.ConfigError, match="cannot be read"):
        esper.load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x00\xff")
    with pytest.raises(esper.ConfigError, match="cannot be read"):
        esper.load_config(str(tmp_path / "binary.yaml"))


def test_a_file_is_laid_over_defaults_key_by_key(tmp_path: Path) -> None:
    defaults = {
        "growth": {"kernel_share": 0.5, "warmup_epochs": 4},
        "seed_selection": {"constraints": {"min_dormant_epochs": 0}},
    }
    path = tmp_path / "esper.yaml"
    path.write_text(
        "growth: {warmup_epochs: 1}\nseed_selection: {constraints: {max_concurrent_seeds: 1}}\n"
    )
    config = esper.load_config(path, defaults=defaults)
    assert (config.growth.kernel_share, config.growth.warmup_epochs) == (0.5, 1)
    assert config.seed_selection.constraints == SelectionConstraints(0, 1)
    path.write_text("growth:\n")
    assert esper.load_config(path, defaults=defaults).growth.warmup_epochs == 4
    path.write_text("growth: 3\n")
    with pytest.raises(ConfigError, match="growth is 3; it must be a mapping"):
        esper.load_config(path, defaults=defaults)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policy: heuristic\npolicy: learned", "key 'policy' is given twice; .*, in line 2"),
        ("growth:\n  budget: 1\n  'budget': 2", "key 'budget' is given twice; .*, in line 3"),
        ("seed_selection: {ucb: {}, ucb: {}}", "key 'ucb' is given twice"),
        ("growth: {keep_stderrs: .inf}", "growth.keep_stderrs is inf; it must be a finite number"),
        ("reward: {rent_per_ms: .nan}", "reward.rent_per_ms is nan; it must be"),
    ],
)
def test_keys_stand_once_and_numbers_are_finite(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        esper.load_config(file)


def test_a_mapping_may_stand_twice_by_an_alias(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("seed_selection: {ucb: &empty {}, thompson: *empty}", encoding="utf-8")
    assert esper.load_config(file) == esper.load_config(file)


def test_a_device_without_an_end_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"/dev/zero is not YAML: .*1,000,000 characters"):
        esper.load_config("/dev/zero")
