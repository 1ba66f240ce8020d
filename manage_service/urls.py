"""Manage's routes; /livez, /readyz and /metrics are answered before Django (`asgi`)."""

from django.urls import path

from manage_service.site import api, console, operations
from manage_service.site.api import by_method
from shared_models.web import docs

urlpatterns = [
    path(console.PATH.removeprefix("/"), console.page),
    path(
        "v1/runs",
        by_method((operations.LIST_RUNS, api.list_runs), (operations.CREATE_RUN, api.create_run)),
    ),
    path("v1/runs/<run_id>", by_method((operations.GET_RUN, api.get_run))),
    path("v1/runs/<run_id>/cancel", by_method((operations.CANCEL_RUN, api.cancel_run))),
    path("v1/status", by_method((operations.GET_STATUS, api.get_status))),
    path("v1/drift", by_method((operations.GET_DRIFT, api.get_drift))),
    path("openapi.json", api.get_description),
    path("docs", docs.docs),
]
handler400 = "shared_models.web.django.bad_request"
handler404 = "shared_models.web.django.not_found"
handler500 = "shared_models.web.django.server_error"
