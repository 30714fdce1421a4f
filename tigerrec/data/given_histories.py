"""Histories of users as a table gives them, to recommend for: neither numbered nor filtered."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from tigerrec.data.arrange import order_of
from tigerrec.data.base import Dataset, DatasetError
from tigerrec.data.interactions import Loader, working_database
from tigerrec.data.prepare import check_dropped, check_filtered, place_of
from tigerrec.data.raw import Tally

logger = logging.getLogger(__name__)

USERS_AT_ONCE = 10_000
HISTORIES = """
SELECT user, list(item ORDER BY {order}) FROM (
    SELECT min(place) AS place, user, item, seconds, nanos FROM interactions GROUP BY user, item, seconds, nanos)
GROUP BY user ORDER BY min(place)
"""


def read_histories(dataset: Dataset, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each user and the items of its history, oldest first, a row that is repeated counting once, users in the order of
    the table; what memory does not hold is spilled into a folder. Raises TigerrecError if the files are missing or
    damaged, hold nothing, or too many lines are unreadable."""
    sources, tally = dataset.sources(), Tally()
    with working_database(folder) as database:
        loader = Loader(database, tally)
        dataset.load_interactions(loader)
        loader.finish()
        where = place_of(sources)
        if not tally.lines.total():
            raise DatasetError(f"{where} holds no interactions: it is empty, or has a header alone.")
        loader.check_times(where, hasattr(dataset, "time_unit"))
        check_dropped(tally, sources, dataset, set())
        check_filtered(loader, where)
        found = database.execute(HISTORIES.format(order=", ".join(order_of(dataset.equal_times))))
        while rows := found.fetchmany(USERS_AT_ONCE):
            yield from rows
