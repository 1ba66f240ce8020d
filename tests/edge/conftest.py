"""What lies between the outside and a whole stack: nginx, and TLS."""

from __future__ import annotations

# The stack is the same as the one of tests/system: pytest finds fixtures by their names here.
from tests.system.conftest import live as live
from tests.system.conftest import stack as stack
