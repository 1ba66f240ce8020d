"""Whether the service lives, whether it can do its work, and its metrics."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from query_service import metrics, stores
from query_service.answers import Condition
from query_service.scope import get_board
from shared_models.stores import check_noeviction
from shared_models.web import prometheus
from shared_models.web.problems import Problem


async def livez(request: HttpRequest) -> HttpResponse:
    """The process answers. Touches nothing."""
    return JsonResponse({"alive": True})


async def readyz(request: HttpRequest) -> HttpResponse:
    """What it needs is there: Redis answers, and may be trusted with counts."""
    missing = await sync_to_async(find_missing)()
    if missing is not None:
        raise Problem(503, "not-ready", "Not ready", missing, headers={"Retry-After": "1"})
    return JsonResponse({"ready": True})


def find_missing() -> str | None:
    """The sentence that says what is missing; None where nothing is. Connects anew: that it can is part of it."""
    client = stores.connect_for_readiness()
    try:
        return check_noeviction(client)
    except (RedisError, OSError) as error:
        return f"Redis cannot be read ({error}); see REDIS_URL"
    finally:
        client.close()


async def show_metrics(request: HttpRequest) -> HttpResponse:
    """All metrics, with the counts as they are now."""
    board = get_board(request)
    await board.read_anew()
    metrics.set_counts(board.names, board.reading if board.condition is not Condition.LOST else None)
    metrics.pass_on_standing_answers()  # of this worker; those of others may be a read late
    return HttpResponse(prometheus.exposition(), content_type=CONTENT_TYPE_LATEST)
