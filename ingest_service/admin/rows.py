"""The pages of a counted table, to look at rows and to delete them. Only producers write rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
from django.contrib.admin import AdminSite, ModelAdmin, ShowFacets
from django.contrib.admin.helpers import ActionForm
from django.contrib.admin.models import LogEntry
from django.db import models, transaction
from django.http import Http404, HttpRequest, HttpResponse

from ingest_service.admin.listing import RowList
from ingest_service.admin.routing import ALIAS
from ingest_service.admin.searching import Rows
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.models import Countable, model_of

log = structlog.get_logger()

# As many rows as a person reads and confirms.
PAGE_ROWS = 50


class TickedOnly(ActionForm):
    """An action applies to the ticked rows, never to all rows of a search."""

    def clean_select_across(self) -> bool:
        return False


# What Django needs before it deletes: rows, how many of each kind, missing permissions, protected rows.
Deletions: TypeAlias = tuple[list[str], dict[str, int], set[str], list[str]]

if TYPE_CHECKING:
    Page = ModelAdmin[Any]
else:
    Page = ModelAdmin


class LookedAt(Page):
    """A table of any size, view only. Everybody who may sign in may look."""

    counters: tuple[Counter, ...] = ()
    list_per_page = PAGE_ROWS
    sortable_by = ()
    show_facets = ShowFacets.NEVER
    show_full_result_count = False

    def get_changelist(self, request: HttpRequest, **kwargs: object) -> type[RowList]:
        return RowList

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> list[str]:
        """Every column. The page shows a row and is not a form."""
        return [field.name for field in self.opts.concrete_fields]

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return tuple(self.get_readonly_fields(request, obj))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Rows have no history: they do not change, and a deleted one has no page."""
        raise Http404


class RowAdmin(LookedAt):
    """A counted table. Only a superuser deletes; a count follows at the next reconcile."""

    action_form = TickedOnly

    def __init__(self, model: type[Countable], site: AdminSite) -> None:
        super().__init__(model, site)
        self.counters = tuple(counter for counter in declarations.COUNTERS if model_of(counter.table) is model)
        counted = dict.fromkeys(name for counter in self.counters for name in counter.fields)
        own = [field.name for field in Countable._meta.get_fields()]
        self.list_display = (own[0], *counted, *own[1:])

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return bool(request.user.is_superuser)  # type: ignore[union-attr]

    def response_action(self, request: HttpRequest, queryset: Rows, *args: Any) -> HttpResponse | None:
        """Delete rows by their ids, whatever the search was; one transaction stores the deletion and its record."""
        ids = [text for text in request.POST.getlist("_selected_action") if text.isdecimal()][:PAGE_ROWS]
        with transaction.atomic(using=ALIAS):
            return super().response_action(request, self.model._default_manager.only("pk").filter(pk__in=ids), *args)

    def get_deleted_objects(self, objs: Iterable[models.Model], request: HttpRequest) -> Deletions:
        """No other row depends on these, so there is nothing to collect."""
        rows = [str(row) for row in objs]
        return rows, {str(self.opts.verbose_name_plural): len(rows)}, set(), []

    def log_deletions(self, request: HttpRequest, queryset: Rows) -> list[LogEntry]:
        """Write the deletion into the admin's log table and the service's log: ids of rows, and the id of the user."""
        ids = [row.pk for row in queryset]
        log.info("admin.deleted", table=self.opts.db_table, ids=ids, who=request.user.pk)
        return super().log_deletions(request, queryset)


class LogAdmin(LookedAt):
    """The log of deletions. Nobody can change it; the admin's role in the database has no right to."""

    list_display = ("id", "action_time", "user", "content_type", "object_repr")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[LogEntry]:
        return super().get_queryset(request).select_related("user", "content_type")
