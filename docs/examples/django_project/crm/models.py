"""Two tables: crm_customer and crm_order. The models do not know that Rollcall counts them."""

import uuid

from django.db import models


class Customer(models.Model):
    """Somebody with an address for e-mail."""

    email = models.CharField(max_length=100, unique=True)


class Order(models.Model):
    """What a customer ordered, and from which device."""

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    device = models.UUIDField(default=uuid.uuid4)
