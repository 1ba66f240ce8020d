"""`python -m tests.manage.written_by_django`: what docs/examples/django_project may do with its rows, in all ways of the ORM."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

import django
from django.apps import apps
from django.db import models, transaction
from django.db.models.functions import Concat

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples" / "django_project"))
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

crm = apps.get_app_config("crm")
Customer: Any = crm.get_model("Customer")
Order: Any = crm.get_model("Order")
customers, orders = Customer.objects, Order.objects

ann = Customer(email="ann@example.org")
ann.save()
ann.email = "anne@example.org"
ann.save()
made = customers.bulk_create([Customer(email=f"{n}@example.org") for n in range(20)])
again = [Customer(email="1@example.org"), Customer(email="x@example.org")]
customers.bulk_create(again, ignore_conflicts=True)
customers.bulk_create(again, update_conflicts=True, unique_fields=["email"], update_fields=["email"])
customers.get_or_create(email="2@example.org")
customers.update_or_create(email="2@example.org", defaults={"email": "two@example.org"})
orders.bulk_create([Order(customer=each) for each in made])
some = customers.filter(email__in=["3@example.org", "4@example.org"])
some.update(email=Concat(models.Value("changed-"), "email"))
orders.filter(customer=made[6]).update(device=uuid.UUID(int=6), customer=made[7])
orders.filter(customer__in=made[10:12]).delete()
made[0].delete()  # and its order
customers.filter(pk=made[1].pk).delete()
for each in made[12:14]:
    each.email = each.email.replace("@", "@mail.")
customers.bulk_update(made[12:14], ["email"])
with transaction.atomic():
    customers.create(email="kept@example.org")
    try:
        with transaction.atomic():  # a savepoint
            ann.delete()
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
