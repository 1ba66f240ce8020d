from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

from shared_models.operations import CountCombinations


class Migration(migrations.Migration):
    """Apart from the table, because CREATE INDEX CONCURRENTLY cannot run in a transaction."""

    atomic = False

    dependencies = [("shared_models", "0001_initial")]

    operations = [
        AddIndexConcurrently("message", models.Index(fields=["state", "city"], name="message_state_city")),
        AddIndexConcurrently("message", models.Index(fields=["username"], name="message_username")),
        AddIndexConcurrently("message", models.Index(fields=["xact"], name="message_xact")),
        CountCombinations("message", "state", "city"),
    ]
