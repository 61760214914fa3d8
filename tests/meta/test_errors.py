"""The tree of errors is the one that its module draws."""

import re

from esper.contracts import errors


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = set(re.findall(r"^[│├└─ ]*(\w+(?:Error))\b", errors.__doc__ or "", flags=re.MULTILINE))
    real = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.EsperError)
    }
    assert drawn == real


def test_bad_settings_and_measurements_are_value_errors() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.MeasurementError, ValueError)
    assert issubclass(errors.NoViableSeedError, errors.SelectionError)
