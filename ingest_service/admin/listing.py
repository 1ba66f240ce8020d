"""Lists over tables of any size: each page is read from an index, after the end of the last one; no page counts rows."""

from __future__ import annotations

from django.contrib.admin import ListFilter
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.db import connections, models
from django.http import HttpRequest

from ingest_service.admin.routing import ALIAS
from ingest_service.admin.searching import Rows, Search
from shared_models.models import Countable

BEFORE, AFTER = "before", "after"
# A search is read from its start, because rows with one value of an index have no order to continue from. So the last
# page reads all rows before it. This number of rows takes a fraction of a second, even from a cold disk.
SEARCH_PAGES = 20


class RowList(ChangeList):
    """The newest rows, page by page by their ids; or the result of a search, in the order of its index."""

    # Django's template asks for these.
    filter_specs: list[ListFilter] = []
    has_filters = has_active_filters = False
    clear_all_filters_qs = ""

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> Rows:
        self.searches = [Search(counter, self.model, request.GET) for counter in self.model_admin.counters]  # type: ignore[attr-defined]
        self.search = next((search for search in self.searches if search.is_bound), None)
        shown = [field.name for field in self.opts.concrete_fields if field.name in self.list_display]
        rows = self.root_queryset.only(*shown)
        return rows if self.search is None else self.search.narrow(rows)

    def get_results(self, request: HttpRequest) -> None:
        """One page, and one more row to know whether it is the last page."""
        self.older = self.newer = ""
        self.limited = False
        rows = self.read_found() if self.search else self.read_newest(request)
        self.result_list, self.result_count = rows, len(rows)
        self.estimate = None if self.search else estimate_rows(self.model)
        self.show_full_result_count, self.full_result_count = False, None
        self.show_admin_actions, self.can_show_all, self.multi_page = True, True, False

    def read_found(self) -> list[Countable]:
        """A page of a search."""
        page = min(max(self.page_num, 1), SEARCH_PAGES)
        first = (page - 1) * self.list_per_page
        rows = list(self.queryset[first : first + self.list_per_page + 1])
        more = len(rows) > self.list_per_page
        self.limited = more and page == SEARCH_PAGES
        if more and not self.limited:
            self.older = self.get_query_string({PAGE_VAR: page + 1})
        if page > 1:
            self.newer = self.get_query_string({PAGE_VAR: page - 1})
        return rows[: self.list_per_page]

    def read_newest(self, request: HttpRequest) -> list[Countable]:
        """A page of all rows, after the end of another page."""
        before, after = (number_in(request, name) for name in (BEFORE, AFTER))
        if after is not None:
            rows = list(self.queryset.filter(pk__gt=after).order_by("pk")[: self.list_per_page + 1])
            has_newer, has_older = len(rows) > self.list_per_page, True
            rows = rows[: self.list_per_page][::-1]
        else:
            narrowed = self.queryset if before is None else self.queryset.filter(pk__lt=before)
            rows = list(narrowed.order_by("-pk")[: self.list_per_page + 1])
            has_newer, has_older = before is not None, len(rows) > self.list_per_page
            rows = rows[: self.list_per_page]
        if rows and has_older:
            self.older = self.get_query_string({BEFORE: rows[-1].pk}, [AFTER])
        if rows and has_newer:
            self.newer = self.get_query_string({AFTER: rows[0].pk}, [BEFORE])
        return rows


def number_in(request: HttpRequest, name: str) -> int | None:
    """A number in the query string; None if there is none."""
    text = request.GET.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 19 else None


def estimate_rows(model: type[models.Model]) -> int | None:
    """How many rows the table has, by Postgres' last estimate; None if there is none yet."""
    connection = connections[ALIAS]
    with connection.cursor() as cursor:
        table = connection.ops.quote_name(model._meta.db_table)
        # -1 where there is no estimate: always for a partitioned table itself, unless somebody has run ANALYZE for it.
        cursor.execute(
            """SELECT sum(reltuples)::bigint FROM pg_class
               WHERE oid IN (SELECT relid FROM pg_partition_tree(%s) UNION SELECT %s::regclass)
                 AND relkind = 'r' AND reltuples >= 0""",
            [table, table],
        )
        (rows,) = cursor.fetchone()
    return None if rows is None else int(rows)
