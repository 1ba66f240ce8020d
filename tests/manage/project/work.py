"""`python -m tests.manage.project.work`: what such a project does with its rows, in all the ways that the ORM has."""

from __future__ import annotations

import os
import uuid

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.manage.project.settings"
django.setup()

from django.db import models, transaction  # noqa: E402
from django.db.models.functions import Concat  # noqa: E402

from tests.manage.project.crm.models import Customer, Order  # noqa: E402

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
orders.filter(customer=made[6]).update(reference=uuid.UUID(int=6), customer=made[7])
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
