"""What the ASGI front hands to Django's views: the board, and the connections for everything that is not on it."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from redis.asyncio import Redis

from query_service.board import Board

BOARD, MEMBERS = "rollcall.board", "rollcall.members"


def hand_over(scope: dict[str, Any], board: Board, members: Redis) -> dict[str, Any]:
    """The scope, with both in it."""
    return {**scope, BOARD: board, MEMBERS: members}


def get_board(request: HttpRequest) -> Board:
    """The worker's board."""
    return request.scope[BOARD]  # type: ignore[attr-defined]


def get_members(request: HttpRequest) -> Redis:
    """The worker's connections for memberships."""
    return request.scope[MEMBERS]  # type: ignore[attr-defined]
