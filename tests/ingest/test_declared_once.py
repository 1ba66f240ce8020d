"""A counter is a few lines of a file: ingest derives endpoints, rules and members from a table's model, and names no field."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.db import connection, models

import ingest_service
from ingest_service.writing.group_commit import GroupFailed
from shared_models import declarations
from shared_models.declarations import Counter, Field, Table
from shared_models.models import Countable, Message
from tests.ingest.producing import Producer, message, running_loop
from tests.ingest.test_grouping import gather
from tests.servers import sql, started_primary

# With columns that no producer sends, and one that there is not.
MORE = (Field("id", "bigint"), Field("xact", "bigint"), Field("create_time", "timestamptz"), Field("nonsense", "text"))
MESSAGES = replace(declarations.TABLES[0], fields=(*declarations.TABLES[0].fields, *MORE))


@pytest.fixture
def sighting(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Countable]]:
    """A second table, with numbers and text, and two counters over it."""

    class Sighting(Countable):
        ring = models.BigIntegerField()
        legs = models.PositiveSmallIntegerField()
        species = models.TextField(max_length=10)

        class Meta:
            app_label = "shared_models"
            db_table = "bird sighting"
            verbose_name_plural = "bird sightings"
            indexes = [
                models.Index(fields=["ring"], name="ring"),
                models.Index(fields=["species", "legs"], name="species_legs"),
                models.Index(fields=["xact"], name="sighting_xact"),
            ]

    with connection.schema_editor() as editor:
        editor.create_model(Sighting)
    fields = (Field("ring", "bigint"), Field("legs", "smallint"), Field("species", "text"))
    table = Table("sighting", "public", "bird sighting", fields, ingest=True)
    declared = (Counter("birds", table, ("ring",)), Counter("kinds", table, ("species", "legs")))
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, *declared))
    yield Sighting
    with connection.schema_editor() as editor:
        editor.delete_model(Sighting)
    del apps.all_models["shared_models"]["sighting"]
    apps.clear_cache()


def test_a_second_model_gets_endpoints_rules_and_counts(producer: Producer, sighting: type[Countable]) -> None:
    owl = {"ring": 2**63 - 1, "legs": 2, "species": "owl\t\\N"}
    assert producer.post("/v1/bird-sightings", owl).json()["counted"] is True
    response = producer.post(
        "/v1/bird-sightings/batch",
        [
            owl,
            owl | {"ring": -5},
            owl | {"ring": 2**63},
            owl | {"legs": -1},
            owl | {"legs": "2"},
            owl | {"legs": True},
            owl | {"legs": 2.0},
            owl | {"species": "x" * 11},
            owl | {"username": "ann"},
        ],
    )
    assert [error["detail"] for error in response.json()["errors"]] == [
        f"ring must be a number from {-(2**63)} to {2**63 - 1}",
        "legs must be a number from 0 to 32767",
        "legs must be a whole number, not a string",
        "legs must be a whole number, not a boolean",
        "legs must be a whole number, not a number",
        "species has 11 characters; the limit is 10",
        "there is no field username; the fields are ring, legs, species",
    ]
    assert response.json()["counted"] is True
    rows = sql(started_primary(), 'SELECT ring, legs, species FROM "bird sighting" ORDER BY id')
    assert rows == [(2**63 - 1, 2, "owl\t\\N")] * 2 + [(-5, 2, "owl\t\\N")]
    assert producer.members("birds") == {b"9223372036854775807", b"-5"}
    assert producer.members("kinds") == {b'["owl\\t\\\\N","2"]'}
    assert producer.members("users") == set()
    assert producer.send(message("ann")).status_code == 201
    paths = producer.get("/openapi.json").json()["paths"]
    assert {"/v1/bird-sightings", "/v1/bird-sightings/batch", "/v1/messages"} <= set(paths)


def test_a_counter_more_over_an_old_table_is_recorded_at_once(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, Counter("states", MESSAGES, ("state",))))
    producer.send_batch(message(state="NY"), message(state="CA"), message(state="NY"))
    assert producer.members("states") == {b"NY", b"CA"}


def test_the_declarations_as_they_are_pass_the_checks(producer: Producer) -> None:
    assert run_checks() == []


def test_a_check_names_a_field_that_cannot_be_sent(
    producer: Producer, sighting: type[Countable], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = (*sighting.sent_fields(), models.DateTimeField(name="seen_at"))
    monkeypatch.setattr(sighting, "sent_fields", classmethod(lambda cls: fields))
    assert [(found.id, found.msg) for found in run_checks()] == [("rollcall.E101", "Sighting.seen_at cannot be sent")]


@pytest.mark.parametrize("fields", [("id",), ("xact",), ("state", "xact"), ("create_time",)])
def test_a_check_names_a_counter_over_what_producers_do_not_send(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...]
) -> None:
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, Counter("days", MESSAGES, fields)))
    found = run_checks()[0]
    assert found.id == ("rollcall.E004" if "create_time" in fields else "rollcall.E006")
    assert f"counter 'days': field '{fields[-1]}'" in found.msg
    assert found.id == "rollcall.E004" or "count one of: state, city, username, message" in (found.hint or "")


@pytest.mark.parametrize("fields", [("id",), ("create_time",), ("state", "nonsense")])
def test_rows_of_which_no_member_can_be_made_are_not_stored(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...]
) -> None:
    """The check was not run, or not listened to. Nobody is told of a failure after the rows have been stored."""
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, Counter("days", MESSAGES, fields)))
    assert producer.send(message()).status_code == 500
    assert producer.send(message(), Idempotency_Key="17").status_code == 500
    assert producer.send_batch(message(), message()).status_code == 500
    grouping = gather(producer.application.rows.committer, ("ann", None), ("bob", None))
    came = asyncio.run_coroutine_threadsafe(grouping, running_loop()).result()
    assert [type(each) for each in came] == [GroupFailed] * 2
    assert producer.rows() == []


def test_a_check_names_two_models_at_one_address(
    producer: Producer, sighting: type[Countable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sighting._meta, "verbose_name_plural", "messages")
    assert [found.id for found in run_checks()] == ["rollcall.E102"]


def test_nothing_but_the_generator_names_a_field_of_the_message() -> None:
    sent = {field.name for field in Message.sent_fields()}
    named = set()
    for file in Path(ingest_service.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in sent:
                named.add(file.name)
            if isinstance(node, ast.Attribute) and node.attr in sent - {"state", "message"}:
                named.add(file.name)
    assert named == {"generator.py"}
