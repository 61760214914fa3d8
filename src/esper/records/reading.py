"""Read a history from a store: from a snapshot and what follows, or as a run once read it."""

from itertools import islice

from esper.records import snapshot
from esper.records.event_writer import Bindings, EventWriter, Reads
from esper.records.fold import take
from esper.records.history import History


def read_history(
    events: EventWriter,
    old: History,
    position: int | None = None,
    *,
    reads: Reads = (),
    bindings: Bindings = (),
) -> History:
    """The history of the store, up to a position of this run; ``old`` itself without a store.

    Args:
        events: Reads the store.
        old: Gives settings and strategy.
        position: Of this run; everything by default.
        reads: Of this run, up to the position; without them all is read in the order of the store.
        bindings: Made after the first of the reads, as when the run began.

    Raises:
        StoreError: if the store cannot be read.
    """
    old.own = events.name
    if events.journal is None:
        return old
    history = History(old.window_size, old.decay_factor, old.begin, events.name)
    if reads:
        again = events.read_again(position, reads)
        for event in islice(again, reads[0][1]):
            take(history, event)
    else:
        history = _read_from_snapshot(events, history, position)
        again = iter(())
    for layer_name, seed_idx, blueprint in bindings:
        history.layer(layer_name).bind(seed_idx, blueprint)
    for event in again:
        take(history, event)
    return history


def _read_from_snapshot(events: EventWriter, empty: History, position: int | None) -> History:
    assert events.journal is not None
    store, scope = events.journal.store, events.scope
    history, place = snapshot.load(store, scope, empty) or (empty, None)
    count = 0
    for event in events.read_all(position, place=place):
        take(history, event)
        count += 1
    if count >= snapshot.EVERY:
        snapshot.save(store, scope, history, events.place)
    return history
