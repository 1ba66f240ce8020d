"""Every metric of ingest, except that of its requests."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ROWS = Counter("rollcall_ingest_rows_total", "Rows stored on the primary.", ["collection"])
UNCOUNTED_ROWS = Counter(
    "rollcall_ingest_uncounted_rows_total", 'Rows stored and acknowledged with "counted": false.', ["collection"]
)
REJECTED_ROWS = Counter("rollcall_ingest_rejected_rows_total", "Rows of batches that were not valid.", ["collection"])
NEW_MEMBERS = Counter(
    "rollcall_ingest_new_members_total", "Members that recording has added to their sets.", ["collection"]
)
COMMIT_ROWS = Histogram(
    "rollcall_ingest_commit_rows",
    "Rows that shared a commit: single rows that arrived together, or a batch.",
    ["collection"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 1_000, 10_000, 100_000),
)
REPLAYS = Counter("rollcall_ingest_replays_total", "Requests answered from a receipt.", ["collection"])
MONTHS_AHEAD = Gauge(
    "rollcall_ingest_months_ahead",
    "For how many months to come the table has a partition.",
    ["collection"],
    multiprocess_mode="mostrecent",
)
