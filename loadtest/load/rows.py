"""The rows that producers send: each follows from its number, so nothing has to store it."""

from __future__ import annotations

from zlib import crc32

USERS, CITIES = 50_000, 3_000
# One row in this many has a new user.
NEW_USER_EVERY = 10
STATES = ("NY", "CA", "TX", "Québec", "São Paulo", "北京")


def token_of(run: str, producer: int, number: int) -> str:
    """The identity of this row and its request: the start of its message."""
    return f"load/{run}/{producer}/{number}"


def row_of(run: str, producer: int, number: int) -> dict[str, str]:
    """The row of this number of this producer."""
    token = token_of(run, producer, number)
    drawn = crc32(token.encode())
    city = drawn // USERS % CITIES
    return {
        "state": STATES[city % len(STATES)],
        "city": f"City {city}",
        "username": f"new-{token}" if drawn % NEW_USER_EVERY == 0 else f"user{drawn % USERS:05d}",
        "message": f"{token} Good morning from {city}! It rains again, of course.",
    }


def read_token(message: str) -> tuple[str, int, int] | None:
    """Run, producer and number of the row with this message; None if it is not a row of a producer."""
    parts = message.partition(" ")[0].split("/")
    if len(parts) != 4 or parts[0] != "load" or not (parts[2].isdigit() and parts[3].isdigit()):
        return None
    return parts[1], int(parts[2]), int(parts[3])
