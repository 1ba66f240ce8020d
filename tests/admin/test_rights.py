"""The rights in the admin, by account and by the role of its connection, and the log of deletions."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import psycopg2
import pytest
from django.db import connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from structlog.testing import capture_logs

from ingest_service.admin import middleware, site
from ingest_service.api import health
from shared_models.protocol import keys
from tests.admin.conftest import OWNER, primary, run_as_owner, signed_in
from tests.admin.test_pages import LIST, check_plans, ids_of
from tests.servers import sql, started_valkey


def remaining(ids: list[int]) -> list[int]:
    return [id for (id,) in sql(primary, "SELECT id FROM message WHERE id = ANY(%s) ORDER BY id", ids)]


def logged() -> list[tuple[Any, ...]]:
    return sql(primary, "SELECT object_id, object_repr, action_flag, change_message FROM django_admin_log ORDER BY id")


def test_a_row_is_deleted_and_both_logs_say_which_and_by_whom(boss: Client) -> None:
    (first, *_) = ids_of(boss.get(LIST))
    with capture_logs() as lines, CaptureQueriesContext(connections["admin"]) as captured:
        assert boss.post(f"{LIST}{first}/delete/", {"post": "yes"}).status_code == 302
    assert remaining([first]) == []
    assert logged() == [(str(first), f"message {first}", 3, "")]
    (line,) = [line for line in lines if line["event"] == "admin.deleted"]
    assert (line["log_level"], line["table"], line["ids"]) == ("info", "message", [first])
    assert sql(primary, "SELECT id FROM auth_user WHERE username = 'boss'") == [(line["who"],)]
    check_plans(captured.captured_queries, on_rows=2)


def test_ticked_rows_are_deleted_and_no_others_whatever_was_searched_for(boss: Client) -> None:
    url = f"{LIST}?users-username=common"
    ids = ids_of(boss.get(url))[:3]
    ticked = {"action": "delete_selected", "_selected_action": ids, "index": 0, "select_across": 1}
    (before,) = sql(primary, "SELECT count(*) FROM message")[0]
    with CaptureQueriesContext(connections["admin"]) as captured:
        asked = boss.post(url, ticked)
        assert asked.status_code == 200 and f"message {ids[0]}" in asked.content.decode()
        assert boss.post(url, ticked | {"post": "yes"}).status_code == 302
    check_plans(captured.captured_queries, on_rows=5)  # the list and the ticked rows, twice; DELETE
    assert remaining(ids) == []
    assert sql(primary, "SELECT count(*) FROM message") == [(before - 3,)]
    assert sorted(int(id) for id, *_ in logged()) == sorted(ids)


def test_a_viewer_looks_and_deletes_nothing(viewer: Client) -> None:
    page = viewer.get(LIST)
    assert page.status_code == 200
    assert "delete_selected" not in page.content.decode()
    (id,) = sql(primary, "SELECT max(id) FROM message")[0]
    assert viewer.get(f"{LIST}{id}/change/").status_code == 200
    refused = viewer.post(f"{LIST}{id}/delete/", {"post": "yes"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:rollcall:forbidden")
    viewer.post(LIST, {"action": "delete_selected", "_selected_action": [id], "index": 0, "post": "yes"})
    assert remaining([id]) == [id]


def test_nobody_adds_or_changes_rows(boss: Client) -> None:
    assert boss.get(f"{LIST}add/").status_code == 403
    (id,) = sql(primary, "SELECT max(id) FROM message")[0]
    assert boss.post(f"{LIST}{id}/change/", {"username": "mallory"}).status_code == 403
    assert sql(primary, "SELECT count(*) FROM message WHERE username = 'mallory'") == [(0,)]


def test_the_log_is_shown_and_cannot_be_deleted(boss: Client) -> None:
    (first, *_) = ids_of(boss.get(LIST))
    boss.post(f"{LIST}{first}/delete/", {"post": "yes"})
    with CaptureQueriesContext(connections["admin"]) as captured:
        page = boss.get("/admin/admin/logentry/").content.decode()
    check_plans(captured.captured_queries, on_rows=0)
    assert f"message {first}" in page and "boss" in page
    (entry,) = sql(primary, "SELECT id FROM django_admin_log")[0]
    assert boss.post(f"/admin/admin/logentry/{entry}/delete/", {"post": "yes"}).status_code == 403


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Ithaca', 'm', '')",
        "UPDATE message SET username = 'm'",
        "TRUNCATE message",
        "SELECT * FROM receipt",
        "INSERT INTO auth_user (username) VALUES ('m')",
        "UPDATE auth_user SET is_superuser = true",
        "UPDATE django_admin_log SET object_id = ''",
        "DELETE FROM django_admin_log",
        "INSERT INTO auth_user_groups (user_id, group_id) VALUES (1, 1)",
        "CREATE TABLE loot (id int)",
        "SET ROLE rollcall_owner",
    ],
)
def test_the_admins_role_may_do_no_more_than_the_admin_does(statement: str) -> None:
    connection = psycopg2.connect(primary.url_of("admin"))
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
    finally:
        connection.close()


@pytest.mark.parametrize("table", ["auth_user", "django_session", "django_admin_log"])
def test_ingests_everyday_role_sees_nothing_of_the_admin(table: str) -> None:
    connection = psycopg2.connect(primary.url_of("ingest"))
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(f"SELECT * FROM {table}")
    finally:
        connection.close()


def sign_in(client: Client, name: str, password: str = OWNER["ADMIN_PASSWORD"], **more: str) -> Any:
    started_valkey().client().flushdb()
    return client.post("/admin/login/?next=/admin/", {"username": name, "password": password, **more})


def test_signing_in_and_out_with_csrf_and_cookies_that_stay_here(rows: None) -> None:
    client = Client(enforce_csrf_checks=True, SERVER_NAME="localhost")
    assert client.get(LIST).status_code == 302
    token = client.get("/admin/login/").cookies["csrftoken"]
    assert sign_in(client, "boss").status_code == 403
    forged = {"csrfmiddlewaretoken": token.value, "next": "/admin/"}
    assert client.post("/admin/login/", forged, headers={"Origin": "https://evil.example"}).status_code == 403
    with capture_logs() as lines:
        wrong = sign_in(client, "boss", "wrong horse", csrfmiddlewaretoken=token.value)
        signed = sign_in(client, "boss", csrfmiddlewaretoken=token.value)
    assert "correct username and password" in wrong.content.decode()
    assert [line["event"] for line in lines if "admin" in line["event"]] == ["admin.sign_in_refused", "admin.signed_in"]
    assert signed.status_code == 302
    cookie = signed.cookies["sessionid"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/admin/")
    assert client.get(LIST).status_code == 200
    assert client.post(f"{LIST}1/delete/", {"post": "yes"}).status_code == 403
    token = client.cookies["csrftoken"]
    assert client.post("/admin/logout/", {"csrfmiddlewaretoken": token.value}).status_code == 200
    assert client.get(LIST).status_code == 302


def test_a_name_that_no_form_takes_is_refused_on_the_page(rows: None) -> None:
    answer = sign_in(Client(SERVER_NAME="localhost"), "bo\x00ss")
    assert (answer.status_code, "Null characters are not allowed" in answer.content.decode()) == (200, True)


def test_signing_in_is_limited_whoever_tries(rows: None) -> None:
    with started_valkey().client() as redis:
        redis.flushdb()
        now = int(time.time())
        for second in range(now, now + 20):
            redis.set(keys.of_rate("ingest", site.RATE, second), site.SIGN_INS_PER_SECOND)
        client = Client(SERVER_NAME="localhost")
        answer = client.post("/admin/login/", {"username": "boss", "password": OWNER["ADMIN_PASSWORD"]})
        assert "try again in a second" in answer.content.decode()
        assert client.get(LIST).status_code == 302


def test_somebody_who_is_disabled_is_out_at_once(rows: None) -> None:
    assert run_as_owner("admin_user", "leaver").returncode == 0
    client = signed_in("leaver")
    assert client.get(LIST).status_code == 200
    assert run_as_owner("admin_user", "leaver", "--disable").returncode == 0
    assert client.get(LIST).status_code == 302
    assert sign_in(client, "leaver").status_code == 200
    assert client.get(LIST).status_code == 302


@pytest.mark.parametrize(
    ("command", "variables", "said"),
    [
        (("admin_user", "short"), {"ADMIN_PASSWORD": "short"}, "at least 12 characters"),
        (("admin_user", "nobody", "--disable"), {}, "there is nobody named nobody"),
        (("admin_user", "boss"), {"ADMIN_DATABASE_URL": ""}, "there is no admin without ADMIN_DATABASE_URL"),
        (("check",), {"SECRET_KEY": ""}, '"SECRET_KEY" not set'),
        (("check",), {"ADMIN_DATABASE_URL": "sqlite://"}, '"ADMIN_DATABASE_URL" invalid'),
        (("check",), {"ADMIN_ORIGIN": "ingest.example.org"}, '"ADMIN_ORIGIN" invalid'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command: tuple[str, ...], variables: dict[str, str], said: str) -> None:
    done = run_as_owner(*command, **variables)
    assert done.returncode != 0
    assert said in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_the_settings_of_production_pass_the_checks_of_deployment() -> None:
    done = run_as_owner(
        "check", "--deploy", "--fail-level=WARNING", ADMIN_ORIGIN="https://ingest.example.org", HSTS_SECONDS="60"
    )
    assert done.returncode == 0, done.stdout
    assert "no issues" in done.stdout
    shown = "from ingest_service import settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE)"
    for origin, secure in {"": "True", "http://localhost": "False"}.items():
        asked = subprocess.run(
            [sys.executable, "-c", shown], env=OWNER | {"ADMIN_ORIGIN": origin}, capture_output=True, text=True
        )
        assert asked.stdout.split() == [secure, secure]


def test_without_its_variable_there_is_no_admin_and_nothing_of_it() -> None:
    shown = """
import django; django.setup()
import sys
from django.conf import settings
from django.test import Client
print(Client(SERVER_NAME='localhost').get('/admin/').status_code, [*settings.DATABASES])
print([name for name in sys.modules if name.startswith('django.contrib.') and name.split('.')[2] in ('admin', 'auth', 'sessions')])
"""
    asked = subprocess.run(
        [sys.executable, "-c", shown], env=OWNER | {"ADMIN_DATABASE_URL": ""}, capture_output=True, text=True
    )
    assert asked.stdout.splitlines() == ["404 ['default']", "[]"], asked.stderr


def test_sessions_are_looked_at_under_admin_only(rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for each in (middleware.Sessions, middleware.SignedIn, middleware.Notices):
        monkeypatch.setattr(each, "process_request", lambda self, request: seen.append(type(self).__name__))
    client = Client(raise_request_exception=False, SERVER_NAME="localhost")
    with CaptureQueriesContext(connections["admin"]) as captured:
        assert client.get("/docs").status_code == 200
        assert client.get("/nowhere").status_code == 404
    assert (seen, captured.captured_queries) == ([], [])
    client.get("/admin/")
    assert seen == ["Sessions", "SignedIn", "Notices"]


def test_a_database_that_does_not_answer_is_a_503_and_the_rest_goes_on(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections["admin"].close()
    monkeypatch.setitem(connections["admin"].settings_dict, "PORT", "1")
    refused = boss.get(LIST)
    assert (refused.status_code, refused["Retry-After"]) == (503, "2")
    assert refused.json()["type"] == "urn:rollcall:admin-unavailable"
    assert boss.get("/docs").status_code == 200
    assert health.read_readiness().missing == []


def test_a_page_of_the_admin_leaves_no_connection_and_loads_from_here_only(boss: Client) -> None:
    response = boss.get(LIST)
    assert connections["admin"].connection is None
    assert response["Content-Security-Policy"] == middleware.POLICY
    assert "unsafe" not in middleware.POLICY
    assert response["Cache-Control"].endswith("private")
