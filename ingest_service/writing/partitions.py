"""Makes the partitions of a table ahead: see `shared_models.partitions`.

Ingest may not make tables. It calls a function of the tables' owner, which makes what is missing and nothing else.
"""

from __future__ import annotations

from functools import partial

import structlog

from ingest_service import catalog, metrics
from ingest_service.writing.transactions import Transaction, TransactionFailed, transact
from shared_models import partitions
from shared_models.declarations import Table
from shared_models.models import table_of

log = structlog.get_logger()


def make_ahead() -> None:
    """Make what is missing for each table that takes rows. Raises TransactionFailed if the primary cannot be asked."""
    for model in catalog.counted_models():
        make_ahead_of(table_of(model), catalog.name_of(model))


def make_ahead_of(table: Table, collection: str) -> None:
    """Make what is missing for one table. If the primary refuses that, the log says why."""
    before, has_begun = transact(partial(look, table))
    ahead = before
    if has_begun or (before is not None and before < partitions.MONTHS_AHEAD):
        try:
            transact(partial(make, table))
            ahead, _ = transact(partial(look, table))
        except TransactionFailed as error:
            log.warning("partitions.not_made", collection=collection, months_ahead=before, reason=error.reason)
    if ahead != before:
        log.info("partitions.made", collection=collection, months_ahead=ahead)
    if ahead is not None:
        metrics.MONTHS_AHEAD.labels(collection).set(ahead)


def make(table: Table, transaction: Transaction) -> None:
    """Call the function of the table's owner."""
    transaction.execute(f"SELECT {partitions.function_name(table)}")


def look(table: Table, transaction: Transaction) -> tuple[int | None, bool]:
    """For how many of the months to come there is a partition (None: the table has none), and whether somebody is about to
    partition the table."""
    ((ahead,),) = transaction.execute(partitions.ahead(table))
    return ahead, bool(transaction.execute(partitions.has_past_check(table)))
