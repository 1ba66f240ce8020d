"""Is this member counted? One and many."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.conf import settings

from shared_models import declarations
from shared_models.declarations import Counter, Field, Table
from shared_models.protocol.members import encode
from tests.query.driving import Query
from tests.query.rolls_in_redis import Rolls

ORDERS = Table("orders", "public", "orders", (Field("shop", "text"), Field("number", "integer")))


@pytest.fixture(autouse=True)
def two_live_counters(rolls: Rolls) -> None:
    rolls.make_live("users", [b"ann", "Zoë & co".encode(), b"42", b'["a","b"]'])
    rolls.make_live("cities", [encode(("NY", "New York")), encode(("a", 'b","c')), encode(("", ""))])


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("users/member?username=ann", True),
        ("users/member?username=Ann", False),
        ("users/member?username=Zo%C3%AB+%26%20co", True),
        ("users/member?username=", False),
        ("users/member?username=%00", False),
        ("users/member?username=%5B%22a%22%2C%22b%22%5D", True),
        ("cities/member?state=NY&city=New+York", True),
        ("cities/member?city=New+York&state=NY", True),
        ("cities/member?city=NY&state=New+York", False),
        ("cities/member?state=a&city=b%22,%22c", True),
        ("cities/member?state=a%22,%22b&city=c", False),
        ("cities/member?state=&city=", True),
    ],
)
def test_one_member(query: Query, path: str, member: bool) -> None:
    reply = query.get(f"/v1/counts/{path}")
    assert (reply.status, reply.json) == (200, {"member": member})
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("users/member", "username"),
        ("users/member?user=ann", "username"),
        ("users/member?username=ann&state=NY", "state"),
        ("users/member?username=ann&username=bob", "username"),
        ("cities/member?state=NY", "city"),
        ("users/member?username=%ff", None),
        ("users/member?" + "&".join(f"f{n}=1" for n in range(200)), None),
    ],
)
def test_a_question_about_other_fields_is_refused_by_name(query: Query, path: str, field: str | None) -> None:
    reply = query.get(f"/v1/counts/{path}")
    assert (reply.status, reply.json["type"]) == (400, "urn:rollcall:wrong-member")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json.get("field") == field
    assert field is None or repr(field) in reply.json["detail"]


def test_many_members_in_the_order_of_the_question(query: Query) -> None:
    asked = [{"username": name} for name in ("ann", "bob", "Zoë & co", 42, "42", 43, "ann")]
    reply = query.post("/v1/counts/users/members", {"members": asked})
    assert (reply.status, reply.json) == (200, {"members": [True, False, True, True, True, False, True]})
    reply = query.post("/v1/counts/cities/members", {"members": [{"city": "New York", "state": "NY"}]})
    assert reply.json == {"members": [True]}
    assert query.post("/v1/counts/users/members", {"members": []}).json == {"members": []}


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        ({"members": [{"username": "ann"}, {"user": "bob"}]}, "wrong-member"),
        ({"members": [{"username": "ann"}, {"username": "bob", "age": 1}]}, "wrong-member"),
        ({"members": [{"username": None}]}, "unreadable-body"),
        ({"members": [{"username": True}]}, "unreadable-body"),
        ({"members": [{"username": 1.5}]}, "unreadable-body"),
        ({"members": [{"username": ["ann"]}]}, "unreadable-body"),
        ({"members": ["ann"]}, "unreadable-body"),
        ({"members": {}}, "unreadable-body"),
        ({"member": []}, "unreadable-body"),
        ({"members": [], "more": 1}, "unreadable-body"),
        ([], "unreadable-body"),
        (b"", "unreadable-body"),
        (b"{", "unreadable-body"),
        (b'{"members": [{"username": "\xff"}]}', "unreadable-body"),
        (b'{"members": [{"username": "\\ud800"}]}', "unreadable-body"),
        (b"[" * 100_000, "unreadable-body"),
        (b'{"members": [{"username": ' + b"9" * 10_000 + b"}]}", "unreadable-body"),
    ],
)
def test_a_body_that_is_not_a_question_is_refused(query: Query, body: Any, type_: str) -> None:
    reply = query.post("/v1/counts/users/members", body)
    assert (reply.status, reply.json["type"]) == (400, f"urn:rollcall:{type_}")


def test_a_wrong_member_among_many_is_named_with_its_place(query: Query) -> None:
    asked = [{"username": "ann"}, {"username": "bob"}, {"name": "carl"}]
    problem = query.post("/v1/counts/users/members", {"members": asked}).json
    assert (problem["field"], problem["index"]) == ("username", 2)


def test_too_many_members_are_refused_with_the_limit(query: Query) -> None:
    most = [{"username": str(n)} for n in range(settings.MAX_MEMBERS)]
    assert query.post("/v1/counts/users/members", {"members": most}).status == 200
    reply = query.post("/v1/counts/users/members", {"members": [*most, {"username": "one more"}]})
    assert (reply.status, reply.json["type"]) == (413, "urn:rollcall:too-many-members")
    assert (reply.json["limit"], str(settings.MAX_MEMBERS) in reply.json["detail"]) == (settings.MAX_MEMBERS, True)


def test_a_body_larger_than_any_question_is_refused(query: Query) -> None:
    body = json.dumps({"members": [{"username": "x" * 10_000_000}]}).encode()
    assert query.post("/v1/counts/users/members", body).status == 413


def test_P4_never_a_partial_count_nor_a_membership_of_a_cold_counter(query: Query, rolls: Rolls) -> None:
    rolls.lose("users")
    rolls.begin_fill("users", expected=10)
    rolls.fill("users", [b"ann"])
    replies = [
        query.get("/v1/counts/users/member?username=ann"),
        query.post("/v1/counts/users/members", {"members": [{"username": "ann"}, {"username": "zoe"}]}),
    ]
    for reply in replies:
        assert (reply.status, reply.json["type"]) == (503, "urn:rollcall:counter-cold")
        assert int(reply.headers["retry-after"]) > 0
        assert reply.json["progress"] == {"read": 1, "expected": 10}


def test_P2_counted_means_counted_as_a_member_at_once(query: Query, rolls: Rolls) -> None:
    assert query.get("/v1/counts/users/member?username=new").json == {"member": False}
    rolls.record("users", b"new")
    assert query.get("/v1/counts/users/member?username=new").json == {"member": True}


def test_members_of_a_counter_that_there_is_not(query: Query) -> None:
    assert query.get("/v1/counts/nobody/member?username=ann").status == 404
    assert query.post("/v1/counts/nobody/members", {"members": []}).status == 404


def test_a_counter_over_a_number_is_asked_by_number_or_text(
    query: Query, rolls: Rolls, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = (*declarations.COUNTERS, Counter("orders", ORDERS, ("shop", "number")))
    monkeypatch.setattr(declarations, "COUNTERS", added)
    rolls.make_live("orders", [encode(("north", 17))])
    assert query.get("/v1/counts/orders/member?shop=north&number=17").json == {"member": True}
    asked = [{"shop": "north", "number": 17}, {"shop": "north", "number": "17"}, {"shop": "north", "number": -17}]
    assert query.post("/v1/counts/orders/members", {"members": asked}).json == {"members": [True, True, False]}
