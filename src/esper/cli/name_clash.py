"""Clash with PyPI's ``esper``, an entity component system that installs into the same folder."""

from importlib.metadata import PackageNotFoundError, version

import esper

_REPAIR = "pip install --force-reinstall --no-deps esper-morph"


def installed() -> tuple[str, str]:
    """Version of this package, and a warning if PyPI's ``esper`` overwrote it; else empty."""
    # Not esper.__version__ first: the other package overwrites that file, and removes it.
    ours = _version("esper-morph") or getattr(esper, "__version__", "of unknown version")
    if other := _version("esper"):
        return ours, (
            f"esper {other} from PyPI, an entity component system, is installed too and writes "
            "into the same folder esper/, so that one overwrites files of the other; way out: "
            f"pip uninstall esper, then {_REPAIR}, and an environment of its own for each"
        )
    if not hasattr(esper, "__version__"):
        return ours, f"esper/__init__.py is missing, perhaps removed with PyPI's esper: {_REPAIR}"
    return ours, ""


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
