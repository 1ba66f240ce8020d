from django.db import migrations

from shared_models.operations import PartitionByMonth


class Migration(migrations.Migration):
    """A table that has rows is left to `python -m ingest_service partition message`."""

    dependencies = [("shared_models", "0003_departures")]

    operations = [PartitionByMonth("message")]
