"""Manage's routes."""

from django.urls import path

from manage_service import console, views

urlpatterns = [
    path(console.PATH.removeprefix("/"), console.page),
    path("livez", views.livez),
    path("readyz", views.readyz),
    path("metrics", views.metrics),
    path("", views.api.urls),
]
handler400 = "shared_models.http.problems.bad_request"
handler404 = "shared_models.http.problems.not_found"
handler500 = "shared_models.http.problems.server_error"
