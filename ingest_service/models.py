"""Ingest's own table in the primary: the answers to requests with an Idempotency-Key."""

from __future__ import annotations

from django.db import models


class Receipt(models.Model):
    """A request that was carried out, and its answer. Written in the transaction that stores its rows."""

    key = models.TextField(primary_key=True, db_collation="C")
    # SHA-256, in hex, of the whole request.
    fingerprint = models.CharField(max_length=64)
    # JSON, without "counted": that depends on the time of the retry. Text, because jsonb refuses U+0000.
    answer = models.TextField()
    create_time = models.DateTimeField(
        db_default=models.Func(function="now", output_field=models.DateTimeField()), editable=False
    )

    class Meta:
        db_table = "receipt"
        indexes = [models.Index(fields=["create_time"], name="receipt_create_time")]

    def __str__(self) -> str:
        return f"receipt {self.key}"
