"""Where what is answered."""

from django.urls import path

from query_service import health, pages, views

handler400 = "shared_models.web.problems.bad_request"
handler404 = "shared_models.web.problems.not_found"
handler500 = "shared_models.web.problems.server_error"

urlpatterns = [
    path("", pages.page),
    path("livez", health.livez),
    path("readyz", health.readyz),
    path("metrics", health.show_metrics),
    path("", views.api.urls),
]
