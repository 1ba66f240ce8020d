"""`admin_user NAME` makes an account of the admin. The owner of the tables runs it; the admin's role cannot make users."""

from __future__ import annotations

import os
from getpass import getpass

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS


class Command(BaseCommand):
    help = (
        "Let somebody sign in to the admin, with the password in the variable ADMIN_PASSWORD, or one that you type. "
        "An existing account gets this password and these rights. Run it with DATABASE_URL of the owner."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--view-only", action="store_true", help="may look at rows, but not delete them")
        parser.add_argument("--disable", action="store_true", help="may no longer sign in; open sessions end")

    def handle(self, *args: object, name: str, view_only: bool, disable: bool, **options: object) -> None:
        if not settings.ADMIN_DATABASE_URL:
            raise CommandError("there is no admin without ADMIN_DATABASE_URL")
        from django.contrib.auth.models import User
        from django.contrib.auth.password_validation import validate_password

        people = User.objects.db_manager(DEFAULT_DB_ALIAS)
        user = people.filter(**{User.USERNAME_FIELD: name}).first()
        if disable:
            if user is None:
                raise CommandError(f"there is nobody named {name}")
            user.is_active = False
        else:
            user = user or User(**{User.USERNAME_FIELD: name})
            password = os.environ.get("ADMIN_PASSWORD") or getpass(f"Password for {name}: ")
            try:
                validate_password(password, user)
                user.set_password(password)
                user.is_active, user.is_staff, user.is_superuser = True, True, not view_only
                user.full_clean(validate_unique=False)
            except ValidationError as error:
                raise CommandError("; ".join(error.messages)) from error
        user.save(using=DEFAULT_DB_ALIAS)
        self.stdout.write(
            f"{name} may {'no longer sign in' if disable else 'look' if view_only else 'look and delete'}."
        )
