import django.db.models.functions.comparison
from django.db import migrations, models

from shared_models.operations import StampXactOnUpdate


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Message",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "create_time",
                    models.DateTimeField(
                        db_default=models.Func(function="now", output_field=models.DateTimeField()), editable=False
                    ),
                ),
                (
                    "xact",
                    models.BigIntegerField(
                        db_default=django.db.models.functions.comparison.Cast(
                            django.db.models.functions.comparison.Cast(
                                models.Func(function="pg_current_xact_id"), output_field=models.TextField()
                            ),
                            output_field=models.BigIntegerField(),
                        ),
                        editable=False,
                    ),
                ),
                ("state", models.CharField(db_collation="C", max_length=64)),
                ("city", models.CharField(db_collation="C", max_length=64)),
                ("username", models.CharField(db_collation="C", max_length=64)),
                ("message", models.TextField(blank=True, max_length=65536)),
            ],
            options={
                "db_table": "message",
            },
        ),
        StampXactOnUpdate("message"),
    ]
