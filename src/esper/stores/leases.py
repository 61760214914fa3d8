"""Leases of writers: who holds one, and whether that process still lives.

A lease ends with the process that holds it: at once where that can be seen, on the same machine,
otherwise when its time is over. Within one process the latest writer goes on, and the earlier one
is refused when it writes.
"""

import os
from functools import cache
from pathlib import Path
from secrets import token_hex

from esper.contracts.errors import LeaseError

SECONDS = 30.0
"""How long a lease lasts; it is renewed after a third of it."""


def holder() -> str:
    """Name for a new holder in this process: machine, process, start of the process, token."""
    return f"{_process(os.getpid())} {token_hex(8)}"


def yields(found: str, asking: str) -> bool:
    """Test whether a holder need not be waited for: it is of the asking one's process, or dead."""
    place, _, _ = found.rpartition(" ")
    if place == asking.rpartition(" ")[0]:
        return True
    machine, _, rest = place.partition(" ")
    pid, _, start = rest.partition(" ")
    if machine != _machine() or not pid.isdecimal():
        return False
    return _start(int(pid)) != start


def taken(address: object, writer: str, found: str, seconds: float) -> LeaseError:
    """Error for a lease that another process holds for so many seconds more."""
    machine, _, rest = found.partition(" ")
    where = f"process {rest.partition(' ')[0]}"
    if machine != _machine():
        where += " of another machine"
    return LeaseError(
        f"store {address}: {writer!r} is written by {where}; end that, give this run another name, "
        f"or wait until its lease ends, in {max(seconds, 0.0):.0f} s"
    )


def lost(address: object, writer: str) -> LeaseError:
    """Error for a lease that was another's when its holder wrote again."""
    return LeaseError(
        f"store {address}: {writer!r} is written by another process now; give this run another name"
    )


def _process(pid: int) -> str:
    return f"{_machine()} {pid} {_start(pid)}"


def _start(pid: int) -> str:
    """Start of a process, in clock ticks since the machine's; empty if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _alive(pid)
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _alive(pid: int) -> str:
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "?"


@cache
def _machine() -> str:
    """Name of this start of this machine, and of the space of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        import platform  # noqa: PLC0415 (where there is no /proc)

        return platform.node().replace(" ", "_") or "?"
