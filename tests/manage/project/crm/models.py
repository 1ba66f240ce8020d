"""Its tables: crm_customer and crm_order."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models


class Customer(models.Model):
    objects: ClassVar[models.Manager[Customer]] = models.Manager()

    email = models.CharField(max_length=100, unique=True)


class Order(models.Model):
    objects: ClassVar[models.Manager[Order]] = models.Manager()

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    reference = models.UUIDField(default=uuid.uuid4)
