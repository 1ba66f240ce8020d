"""The packages of manage, from the bottom up: each imports only those below it, so you can read it without those above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MANAGE = Path(__file__).parents[2] / "manage_service"
# The modules next to the packages: all packages may import them, and they import only the lowest one.
FLOORS = {"replica": 0, "leases": 1, "stores": 1, "protocol": 1, "runs": 2, "keeper": 4, "status": 4}
FLOORS |= {"site": 5, "management": 5}


def imported(path: Path) -> Iterator[str]:
    """The rooms and modules of manage that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "manage_service":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("manage_service."):
            yield str(node.module).split(".")[1]


@pytest.mark.parametrize("room", [room for room in FLOORS if (MANAGE / room).is_dir()])
def test_a_room_knows_only_those_below_it(room: str) -> None:
    known = {name for path in (MANAGE / room).rglob("*.py") for name in imported(path)} - {room}
    assert {name for name in known if FLOORS[name] >= FLOORS[room]} == set()


def test_every_room_has_its_floor() -> None:
    rooms = {path.name for path in MANAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= FLOORS.keys()
