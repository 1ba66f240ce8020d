"""The admin's pages over a counted table: each page is read from an index, and none counts rows."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
from django.db import connections, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path

from ingest_service.admin import listing
from shared_models import declarations
from shared_models.declarations import Counter, Field, Table
from shared_models.models import Countable
from tests.admin.conftest import ROWS, primary
from tests.servers import sql

LIST = "/admin/shared_models/message/"
PAGES = [
    "",
    "?before=700",
    "?after=20",
    "?o=2.-3",
    "?all=",
    "?username=common",
    "?users-username=user-1",
    "?users-username=c&p=100",
    "?users-username=common&users-exactly=on&p=3",
    "?users-username=nobody",
    "?cities-state=Z",
    "?cities-state=ZZ&cities-city=City+1",
    "?cities-state=A1&cities-city=City+17&cities-exactly=on",
    "1/change/",
    "1/delete/",
]


def ids_of(response: Any) -> list[int]:
    """The rows of a list, from top to bottom."""
    return [int(found) for found in re.findall(r'name="_selected_action" value="(\d+)"', response.content.decode())]


def link(response: Any, rel: str) -> str:
    """Where a page's link to the next or the last one leads; "" where it has none."""
    found = re.search(rf'<a href="([^"]*)" rel="{rel}"', response.content.decode())
    return found[1].replace("&amp;", "&") if found else ""


def plan_of(statement: str) -> str:
    """How the admin's own connection would carry it out."""
    with connections["admin"].cursor() as cursor:
        cursor.execute("EXPLAIN " + statement.replace("%", "%%"), ())
        return "\n".join(line for (line,) in cursor.fetchall())


def check_plans(statements: list[dict[str, str]], on_rows: int) -> None:
    """No count, no look through the table, no sort (partitions are merged); so many statements that touch the table at all."""
    made = [each["sql"] for each in statements]
    assert [statement for statement in made if "COUNT(" in statement.upper()] == []
    touching = [statement for statement in made if 'FROM "message"' in statement]
    assert len(touching) == on_rows, touching
    for statement in touching:
        plan = plan_of(statement)
        assert not re.search(r"Seq Scan|Sort  \(|Bitmap|Aggregate", plan), f"{statement}\n{plan}"
        assert "Index Cond" in plan or "Limit" in plan, plan


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_one_short_range_of_an_index(boss: Client, page: str) -> None:
    with CaptureQueriesContext(connections["admin"]) as captured:
        response = boss.get(LIST + page)
    assert response.status_code == 200
    check_plans(captured.captured_queries, on_rows=1)


def test_statistics_that_are_old_or_missing_change_no_plan(boss: Client) -> None:
    parts = "(SELECT relid FROM pg_partition_tree('message'))"
    sql(primary, f"DELETE FROM pg_statistic WHERE starelid IN {parts}")
    sql(primary, f"UPDATE pg_class SET reltuples = 2 WHERE oid IN {parts}")
    for page in PAGES:
        with CaptureQueriesContext(connections["admin"]) as captured:
            boss.get(LIST + page)
        check_plans(captured.captured_queries, on_rows=1)


def test_a_walk_through_the_pages_sees_every_row_once_both_ways(boss: Client) -> None:
    ids = [id for (id,) in sql(primary, "SELECT id FROM message ORDER BY id DESC")]
    there, url = [], LIST
    while url:
        last = boss.get(url)
        there += ids_of(last)
        older = link(last, "next")
        url = LIST + older if older else ""
    assert there == ids
    back, response = ids_of(last), last
    while newer := link(response, "prev"):
        response = boss.get(LIST + newer)
        back = ids_of(response) + back
    assert back == ids


def test_a_search_reads_on_in_the_order_of_its_index(boss: Client) -> None:
    found, url = [], f"{LIST}?users-username=user-1"
    while url:
        response = boss.get(url)
        found += ids_of(response)
        on = link(response, "next")
        url = LIST + on if on else ""
    wanted = sql(primary, "SELECT id FROM message WHERE username LIKE 'user-1%'")
    assert sorted(found) == sorted(id for (id,) in wanted)


def test_a_search_without_end_says_that_there_is_more(boss: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SEARCH_PAGES", 2)
    first = boss.get(f"{LIST}?users-username=c")
    assert "There are more" not in first.content.decode()
    last = boss.get(LIST + link(first, "next"))
    assert "There are more" in last.content.decode()
    assert not link(last, "next")
    assert ids_of(boss.get(f"{LIST}?users-username=c&p=999")) == ids_of(last)


def test_a_search_finds_a_beginning_or_exactly_that(boss: Client) -> None:
    for query, condition in {
        "users-username=user-12&users-exactly=on": "username = 'user-12'",
        "users-username=user-899": "username LIKE 'user-899%'",
        "users-username=%25": "username LIKE '\\%%'",
        "users-username=User-8": "username LIKE 'User-8%'",
        "cities-state=A3&cities-city=City+99": "state = 'A3' AND city LIKE 'City 99%'",
    }.items():
        wanted = sql(primary, f"SELECT id FROM message WHERE {condition}".replace("%", "%%"), ())
        assert set(ids_of(boss.get(f"{LIST}?{query}"))) == {id for (id,) in wanted[:50]}, query


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("cities-city=City", "fill in state, too"),
        ("users-exactly=on", "fill in "),
        ("users-username=%00", "Null characters are not allowed"),
        (f"users-username={'x' * 65}", "at most 64 characters"),
    ],
)
def test_a_search_that_no_index_answers_says_what_is_missing(boss: Client, query: str, said: str) -> None:
    response = boss.get(f"{LIST}?{query}")
    assert said in response.content.decode()
    assert ids_of(response) == []


def test_the_number_of_rows_is_an_estimate_and_says_so(boss: Client) -> None:
    assert f"about {ROWS} in the table (Postgres&#x27; estimate)" in boss.get(LIST).content.decode().replace(
        "Postgres'", "Postgres&#x27;"
    )


def test_a_second_table_has_its_pages_without_a_line(
    boss: Client, monkeypatch: pytest.MonkeyPatch, settings_urls: Any
) -> None:
    class Sighting(Countable):
        ring = models.BigIntegerField()
        legs = models.PositiveSmallIntegerField()

        class Meta:
            app_label = "shared_models"
            db_table = "bird sighting"

    sql(
        primary,
        """CREATE TABLE "bird sighting" (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, ring bigint, legs smallint,
           create_time timestamptz DEFAULT now(), xact bigint DEFAULT 1);
           CREATE INDEX ring ON "bird sighting" (ring, legs); GRANT SELECT ON "bird sighting" TO rollcall_admin;
           INSERT INTO "bird sighting" (ring, legs) VALUES (7, 2), (77, 2), (7, 1);
           INSERT INTO django_content_type (app_label, model) VALUES ('shared_models', 'sighting')""",
    )
    try:
        fields = (Field("ring", "bigint"), Field("legs", "smallint"))
        table = Table("sighting", "public", "bird sighting", fields, ingest=True)
        declared = (*declarations.COUNTERS, Counter("birds", table, ("ring", "legs")))
        monkeypatch.setattr(declarations, "COUNTERS", declared)
        settings_urls()
        page = "/admin/shared_models/sighting/"
        assert ids_of(boss.get(page)) == [3, 2, 1]
        assert sorted(ids_of(boss.get(f"{page}?birds-ring=7"))) == [1, 3]
        assert ids_of(boss.get(f"{page}?birds-ring=7&birds-legs=1")) == [3]
        assert "Enter a whole number" in boss.get(f"{page}?birds-ring=many").content.decode()
    finally:
        from django.apps import apps

        sql(primary, "DROP TABLE \"bird sighting\"; DELETE FROM django_content_type WHERE model = 'sighting'")
        del apps.all_models["shared_models"]["sighting"]
        apps.clear_cache()


@pytest.fixture
def settings_urls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the admin again, for the present declarations."""

    def make() -> None:
        from django.conf import settings

        from ingest_service.admin.site import make_site

        urls = types.ModuleType("urls_of_a_test")
        urls.urlpatterns = [path("admin/", make_site().urls)]  # type: ignore[attr-defined]
        monkeypatch.setattr(settings, "ROOT_URLCONF", urls)
        from django.urls import set_urlconf

        set_urlconf(urls)  # type: ignore[arg-type]  # a module does as well as its name

    yield make
    from django.urls import set_urlconf

    set_urlconf(None)
