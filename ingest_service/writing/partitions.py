"""Makes the partitions of a table ahead: see `shared_models.partitions`.

Ingest may not make tables. It calls a function of the tables' owner, which makes what is missing and nothing else.
"""

from __future__ import annotations

import structlog

from ingest_service import catalog, metrics
from ingest_service.writing.transactions import Transaction, TransactionFailed, transact
from shared_models import partitions
from shared_models.declarations import Table
from shared_models.models import table_of

log = structlog.get_logger()


def make_ahead() -> None:
    """Make what is missing for each table that takes rows. Raises TransactionFailed where the primary cannot be asked."""
    for model in catalog.counted_models():
        table, collection = table_of(model), catalog.name_of(model)
        ahead, has_begun = transact(lambda transaction, table=table: look(transaction, table))
        if has_begun or (ahead is not None and ahead < partitions.MONTHS_AHEAD):
            try:
                transact(
                    lambda transaction, table=table: transaction.execute(f"SELECT {partitions.function_name(table)}")
                )
            except TransactionFailed as error:
                log.warning("partitions.not_made", collection=collection, months_ahead=ahead, reason=error.reason)
            else:
                before, (ahead, _) = ahead, transact(lambda transaction, table=table: look(transaction, table))
                if ahead != before:
                    log.info("partitions.made", collection=collection, months_ahead=ahead)
        if ahead is not None:
            metrics.MONTHS_AHEAD.labels(collection).set(ahead)


def look(transaction: Transaction, table: Table) -> tuple[int | None, bool]:
    """For how many of the months to come there is a partition (None: the table has none), and whether somebody is about to partition
    the table."""
    ((ahead,),) = transaction.execute(partitions.ahead(table))
    return ahead, bool(transaction.execute(partitions.has_past_check(table)))
