"""Signs of the states of seeds in a terminal."""

import sys
from collections.abc import Mapping

from rich.text import Text

from esper.contracts.seeds import SeedState

STATES: Mapping[str, tuple[str, str, str]] = {
    SeedState.DORMANT: ("·", ".", "dim"),
    SeedState.GERMINATED: ("○", "o", "cyan"),
    SeedState.TRAINING: ("◔", "t", "cyan"),
    SeedState.BLENDING: ("◑", "b", "yellow"),
    SeedState.HOLDING: ("◕", "h", "yellow"),
    SeedState.FOSSILIZED: ("●", "*", "green"),
    SeedState.CULLED: ("✕", "x", "red"),
}
"""Sign of every state, that of a terminal that knows only ASCII, and colour; the sign alone is
enough where there are no colours."""


def seed_sign(state: str, text: str, kept: int = 0) -> Text:
    """Seed in the sign and colour of its state: ``◑ glu``, and its kept kernels: ``+1``."""
    sign, style = _sign_of(state)
    label = Text(f"{sign} {text}", style=style)
    return label.append(f" +{kept}", style="green") if kept else label


def states_legend() -> Text:
    """Legend of the signs of states, and of kept kernels."""
    text = Text()
    for state in (s for s in STATES if s not in {SeedState.GERMINATED, SeedState.HOLDING}):
        sign, style = _sign_of(state)
        text.append(f"{sign} {'kept' if state == SeedState.FOSSILIZED else state}  ", style=style)
    return text.append("+1 kernels kept", style="green")


def _sign_of(state: str) -> tuple[str, str]:
    """Sign and colour of a state, in letters that stdout has."""
    sign, plain, style = STATES[state]
    try:
        sign.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        sign = plain
    return sign, style
