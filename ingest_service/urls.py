"""The addresses. A collection's endpoints are there because a counter names its model, not because of a line here."""

from django.conf import settings
from django.urls import URLPattern, URLResolver, path
from django.views.generic import RedirectView

from ingest_service import views
from shared_models.web import problems

handler400 = problems.bad_request
handler404 = problems.not_found
handler500 = problems.server_error

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/<str:collection>", views.post_row),
    path("v1/<str:collection>/batch", views.post_batch),
    path("livez", views.get_livez),
    path("readyz", views.get_readyz),
    path("metrics", views.get_metrics),
    path("openapi.json", views.get_openapi),
    path("docs", views.get_docs),
]

if settings.ADMIN_DATABASE_URL:
    from ingest_service.admin.site import make_site

    urlpatterns += [path("admin/", make_site().urls), path("admin", RedirectView.as_view(url="/admin/"))]
