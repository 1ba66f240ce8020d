"""The admin in a whole stack: the counts follow its deletions, and only its users may sign in."""

from __future__ import annotations

import http.client
import http.cookiejar
import urllib.parse
import urllib.request
from typing import Any

from compose.local.servers import read_secret
from compose.local.stack import Stack
from tests.servers import sql, wait_for
from tests.system.asking import ask, count


class Operator:
    """Somebody with a browser, signed in."""

    def __init__(self, stack: Stack) -> None:
        self.url = stack.ingest.admin_url
        self.cookies = http.cookiejar.CookieJar()
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        self.browser.open(f"{self.url}login/").read()
        self.post("login/", username=stack.ingest.first_user, password=read_secret(stack.ingest.admin_password_path))

    def post(self, page: str, **fields: Any) -> str:
        """The page that one is led to."""
        (token,) = (cookie.value for cookie in self.cookies if cookie.name == "csrftoken")
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        with self.browser.open(self.url + page, data) as answer:
            return str(answer.read().decode())


def test_P6_what_is_deleted_in_the_admin_leaves_the_count_by_itself(live: Stack) -> None:
    row = {"state": "NY", "city": "Ithaca", "username": "to be deleted", "message": "hello"}
    _, stored = ask(live.ingest, "POST", "/v1/messages", row)
    before = count(live)
    assert before
    page = Operator(live).post(f"shared_models/message/{stored['id']}/delete/", post="yes")
    assert f"message {stored['id']}" in page
    assert sql(live.primary, "SELECT count(*) FROM message WHERE id = %s", stored["id"]) == [(0,)]
    wait_for(lambda: count(live) == before - 1, "the member to leave")


def test_the_door_lets_everybody_to_the_admin_and_to_nothing_beside_it(live: Stack) -> None:
    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", live.ingest.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    assert status("/admin/login/") == 200
    assert status("/admin") == status("/admin/") == 302
    assert status("/static/admin/css/base.css") == 200
    assert [status(path) for path in ("/administrator", "/admin.php", "/v1/messages", "/metrics")] == [401] * 4
