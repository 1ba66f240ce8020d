"""Manage's routes, except /livez, /readyz, /metrics and /openapi.json, which `asgi` answers before Django."""

from django.urls import path

from manage_service.site import api, console, openapi
from manage_service.site.api import by_method
from shared_models.web import docs

urlpatterns = [
    path(console.PATH.removeprefix("/"), console.page),
    path(
        "v1/runs",
        by_method((openapi.LIST_RUNS, api.list_runs), (openapi.CREATE_RUN, api.create_run)),
    ),
    path("v1/runs/<run_id>", by_method((openapi.GET_RUN, api.get_run))),
    path("v1/runs/<run_id>/cancel", by_method((openapi.CANCEL_RUN, api.cancel_run))),
    path("v1/status", by_method((openapi.GET_STATUS, api.get_status))),
    path("v1/drift", by_method((openapi.GET_DRIFT, api.get_drift))),
    path("docs", docs.docs),
]
handler400 = "shared_models.web.django.bad_request"
handler404 = "shared_models.web.django.not_found"
handler500 = "shared_models.web.django.server_error"
