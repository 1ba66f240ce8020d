"""Manage's routes."""

from django.urls import path

from manage_service.site import api, console

urlpatterns = [
    path(console.PATH.removeprefix("/"), console.page),
    path("livez", api.livez),
    path("readyz", api.readyz),
    path("metrics", api.metrics),
    path("", api.api.urls),
]
handler400 = "shared_models.web.problems.bad_request"
handler404 = "shared_models.web.problems.not_found"
handler500 = "shared_models.web.problems.server_error"
