from django.db import migrations

from shared_models.operations import NoteDepartures


class Migration(migrations.Migration):
    """The index on xact stays as it is: every row has one above 0, so that one over `xact > 0` would hold the same."""

    dependencies = [("shared_models", "0002_indexes")]

    operations = [NoteDepartures("message")]
