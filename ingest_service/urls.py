"""What Django answers: pages, for people. The API is in api/application.py."""

from django.conf import settings
from django.urls import URLPattern, URLResolver, path
from django.views.generic import RedirectView, TemplateView

from ingest_service.api import openapi
from shared_models.web import django

handler400 = django.bad_request
handler404 = django.not_found
handler500 = django.server_error

docs = TemplateView.as_view(
    template_name="ingest_service/docs.html", extra_context={"title": openapi.TITLE}, http_method_names=["get", "head"]
)
urlpatterns: list[URLPattern | URLResolver] = [path("docs", docs)]

if settings.ADMIN_DATABASE_URL:
    from ingest_service.admin.site import make_site

    urlpatterns += [path("admin/", make_site().urls), path("admin", RedirectView.as_view(url="/admin/"))]
