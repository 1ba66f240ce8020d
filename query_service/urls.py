"""What Django answers: the page and the docs. The API is in asgi.py."""

from django.urls import path

from query_service.site import pages
from shared_models.web.docs import docs

handler400 = "shared_models.web.django.bad_request"
handler404 = "shared_models.web.django.not_found"
handler500 = "shared_models.web.django.server_error"

urlpatterns = [
    path("", pages.page),
    path("docs", docs),
]
