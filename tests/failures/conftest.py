"""Failures, all at once or one by one; and load. Most of these tests have a stack of their own."""

from __future__ import annotations

# The stack is the same as the one of tests/system: pytest finds fixtures by their names here.
from tests.system.conftest import live as live
from tests.system.conftest import stack as stack
