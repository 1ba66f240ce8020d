from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Receipt",
            fields=[
                ("key", models.TextField(db_collation="C", primary_key=True, serialize=False)),
                ("fingerprint", models.CharField(max_length=64)),
                ("answer", models.TextField()),
                (
                    "create_time",
                    models.DateTimeField(
                        db_default=models.Func(function="now", output_field=models.DateTimeField()), editable=False
                    ),
                ),
            ],
            options={
                "db_table": "receipt",
                "indexes": [models.Index(fields=["create_time"], name="receipt_create_time")],
            },
        ),
    ]
