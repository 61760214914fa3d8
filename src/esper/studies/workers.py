"""Worker processes of a study: they end with the process that began them, however it ends."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def worker_pool(slots: int) -> ProcessPoolExecutor:
    """Pool of spawned processes; none of them outlives a parent that is killed.

    They are spawned: a fork would copy threads that others may have started.

    Args:
        slots: Processes at most, >= 1.
    """
    return ProcessPoolExecutor(
        slots, mp_context=get_context("spawn"), initializer=_end_with_the_parent
    )


def _end_with_the_parent() -> None:
    # Workers hold the ends of one another's pipes, so none of them would see its own close.
    Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
