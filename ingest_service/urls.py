"""The pages that Django answers, for people. The API is in api/application.py."""

from django.conf import settings
from django.urls import URLPattern, URLResolver, path
from django.views.generic import RedirectView

from shared_models.web import django
from shared_models.web.docs import docs

handler400 = django.bad_request
handler404 = django.not_found
handler500 = django.server_error

urlpatterns: list[URLPattern | URLResolver] = [path("docs", docs)]

if settings.ADMIN_DATABASE_URL:
    from ingest_service.admin.site import make_site

    urlpatterns += [path("admin/", make_site().urls), path("admin", RedirectView.as_view(url="/admin/"))]
