"""rollcall.toml: what is valid, and the errors for what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared_models import declarations, triggers
from shared_models.declarations import BadDeclaration, Field, Storage, parse, read_file
from shared_models.protocol import keys

ORDERS = """
    [tables.orders]
    name = "shop.orders"
    fields = {email = "text", shop = "uuid", seen_at = "timestamptz"}
"""
CUSTOMERS = ORDERS + '[counters.customers]\ntable = "orders"\nmember = ["email"]\n'


def test_a_table_of_others_and_a_counter_over_it() -> None:
    ((table,), (customers, pairs)) = parse(
        CUSTOMERS
        + """
        where = "deleted_at IS NULL"
        [counters.pairs]
        table = "orders"
        member = ["shop", "email"]
        example = ["c0ffee00-0000-4000-8000-000000000000", "ann"]
        """
    )
    assert (table.schema, table.relation, table.ingest) == ("shop", "orders", False)
    assert table.fields[1] == Field("shop", "uuid")
    assert (customers.fields, customers.where) == (("email",), "deleted_at IS NULL")
    assert pairs.types == ("uuid", "text") and pairs.example_member()["email"] == "ann"


@pytest.mark.parametrize(
    "lines, said",
    [
        ("", "there is no [counters.NAME]"),
        ("[counter.x]", "Object contains unknown field `counter`"),
        (ORDERS.replace("fields", "felds"), "tables.orders: Object"),
        (ORDERS.replace('"text"', '"txt"'), "tables.orders.fields.email: 'txt' is not one of text, varchar"),
        (ORDERS.replace("tables.orders", "tables.Orders"), "tables.Orders: use lower-case letters"),
        (ORDERS + '[tables.again]\nname = "shop.orders"\nfields = {}', "tables.again: tables.orders is the same table"),
        (CUSTOMERS.replace('table = "orders"', 'table = "order"'), "there is no [tables.order]; there are: orders"),
        (
            CUSTOMERS.replace('["email"]', '["mail"]'),
            "counters.customers.member: tables.orders.fields does not have 'mail'",
        ),
        (CUSTOMERS.replace('["email"]', '["seen_at"]'), "seen_at is timestamptz, and members are made of"),
        (CUSTOMERS.replace('["email"]', '["email", "email"]'), "a field is named twice"),
        (CUSTOMERS.replace('["email"]', "[]"), "counter 'customers': name at least one field"),
        (CUSTOMERS.replace('["email"]', '"email"'), "counters.customers: Expected `array`"),
        (
            CUSTOMERS.replace("fields = {", 'fields = {"a,b" = "text", a = "text", b = "text", ')
            + 'by = ["a,b", ["a", "b"]]',
            "counters.customers.by: two entries have the name 'customers:a,b'",
        ),
        (CUSTOMERS + "shards = 0", "counters.customers.shards: 0, and it may be 1 to 256"),
        (CUSTOMERS + "next_shards = 0", "counters.customers.next_shards: 0, and it may be 1 to 256"),
        (CUSTOMERS + "next_shards = 257", "counters.customers.next_shards: 257, and it may be 1 to 256"),
        (
            CUSTOMERS + "next_shards = 1",
            "counters.customers.next_shards: 1, and shards is the same: name another number",
        ),
        (CUSTOMERS + "shards = 4\nnext_shards = 4", "counters.customers.next_shards: 4, and shards is the same"),
        (CUSTOMERS + 'next_shards = "4"', "counters.customers: Expected `int | null`, got `str` - at `$.next_shards`"),
        (CUSTOMERS + 'tag = "A"', "counters.customers.tag: use lower-case letters"),
        (CUSTOMERS + 'by = ["city"]', "counters.customers.by: tables.orders.fields does not have 'city'"),
        (CUSTOMERS + 'by = ["seen_at"]', "seen_at is timestamptz: write day(seen_at), week(seen_at) or month(seen_at)"),
        (
            CUSTOMERS + 'by = ["day(shop)"]',
            "counters.customers.by: shop is uuid, and has to be timestamptz or date there",
        ),
        (CUSTOMERS + 'by = ["year(seen_at)"]', "Of a time there are day(column), week(column), month(column)"),
        (CUSTOMERS + 'by = ["shop", ["shop"]]', "counters.customers.by: shop stands there twice"),
        (CUSTOMERS + 'by = [["shop", "shop"]]', "counters.customers.by: shop, shop stands there twice"),
        (CUSTOMERS + "by = [[]]", "a group is made of 1 to 3 columns, and not of 0"),
        (CUSTOMERS + 'by = ["email"]', "email names the whole member"),
        (CUSTOMERS + f"by = {['shop'] * 9}", "counters.customers.by: 9 entries, and at most 8 are allowed"),
        (CUSTOMERS + 'last_seen = "at"', "counters.customers.last_seen: at is not in tables.orders.fields"),
        (CUSTOMERS + 'last_seen = "email"', "email is text, and has to be timestamptz or date there"),
        (CUSTOMERS + 'time_zone = "Berlin"', "counters.customers.time_zone: there is no time zone 'Berlin'"),
        (CUSTOMERS + 'time_zone = "UTC\'); DROP TABLE x; --"', "counters.customers.time_zone: there is no time zone"),
        (CUSTOMERS + "where = \"email <> '\\u0000'\"", "no name and no condition"),
        (CUSTOMERS + 'where = "true; DROP TABLE x"', "counters.customers.where: one SQL condition"),
        (CUSTOMERS + "example = [1, 2]", "the example needs one value for each field"),
        (CUSTOMERS.replace("[counters", "ingest = true\n[counters") + 'where = "true"', "come in through ingest"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(lines: str, said: str) -> None:
    with pytest.raises(BadDeclaration) as raised:
        parse(lines)
    assert said in str(raised.value)


def test_a_counter_that_is_declared_otherwise_is_another_one() -> None:
    def definition(lines: str) -> str:
        (counter,) = parse(lines)[1]
        return counter.definition

    same = definition(CUSTOMERS)
    assert definition(CUSTOMERS + 'example = ["ann"]') == same
    others = [
        CUSTOMERS + 'where = "true"',
        CUSTOMERS.replace("shop.orders", "orders"),
        CUSTOMERS.replace('email = "text"', 'email = "varchar"'),
        CUSTOMERS.replace('["email"]', '["email", "shop"]'),
    ]
    assert len({same, *map(definition, others)}) == 5


@pytest.mark.parametrize("service", ["ingest_service", "manage_service", "query_service"])
def test_each_service_reads_the_file_that_the_variable_names(tmp_path: Path, service: str) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(CUSTOMERS)
    stores = {
        "DATABASE_URL": "postgres://types/only",
        "REPLICA_URL": "postgres://types/only",
        "REDIS_URL": "redis://x/0",
    }
    settings = {"DJANGO_SETTINGS_MODULE": f"{service}.settings", "AUTH": "off", "ROLLCALL_FILE": str(file)}
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import django; django.setup(); from shared_models import declarations as d; print(d.COUNTERS)",
        ],
        env=os.environ | stores | settings,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert "Counter(name='customers'" in told.stdout and "users" not in told.stdout


@pytest.mark.parametrize("service", ["ingest_service", "manage_service", "query_service"])
def test_a_mistake_in_the_file_ends_the_start_with_one_sentence(tmp_path: Path, service: str) -> None:
    """Where the settings are read, which is before there are workers to start again."""
    file = tmp_path / "shop.toml"
    file.write_text(CUSTOMERS.replace("member", "membr"))
    told = subprocess.run(
        [sys.executable, "-c", f"import {service}.settings"],
        env=os.environ | {"ROLLCALL_FILE": str(file)},
        capture_output=True,
        text=True,
    )
    known = "table, member, where, by, last_seen, time_zone, example, shards, next_shards, tag"
    said = f"counters.customers: Object contains unknown field `membr`; there are: {known}"
    assert (told.returncode, told.stderr) == (1, f"{file}: {said}. See docs/declarations.md.\n")


def test_a_file_of_an_editor_that_marks_its_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_text(CUSTOMERS, encoding="utf-8-sig")
    assert [counter.name for counter in read_file(tmp_path / "marked.toml")[1]] == ["customers"]


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDeclaration, match=r"ROLLCALL_FILE=.*none\.toml cannot be read"):
        read_file(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[tables")
    with pytest.raises(BadDeclaration, match=r"bad\.toml: Expected"):
        read_file(tmp_path / "bad.toml")


def test_the_packaged_file_declares_the_message() -> None:
    tables, counters = read_file(declarations.FILE)
    assert [table.name for table in tables] == ["message"] and tables[0].ingest
    assert [counter.name for counter in counters] == ["cities", "users"]


def test_a_counter_expands_into_its_total_and_one_for_each_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        CUSTOMERS
        + """
        by = ["shop", "week(seen_at)", ["day(seen_at)", "shop"]]
        last_seen = "seen_at"
        time_zone = "Europe/Berlin"
    """
    )
    monkeypatch.setattr(declarations, "COUNTERS", parse(lines)[1])
    total, *groupings = declarations.derived()
    assert [each.name for each in groupings] == [
        "customers:shop",
        "customers:week(seen_at)",
        "customers:day(seen_at),shop",
    ]
    assert total.storage is Storage.LAST_SEEN and {each.storage for each in groupings} == {Storage.GROUPS}
    assert [each.name for each in total.terms] == ["email", "day(seen_at)"]
    assert [each.sql("t.") for each in groupings[2].terms] == [
        "(timezone('Europe/Berlin', t.\"seen_at\"))::date",
        't."shop"',
        't."email"',
    ]
    assert len({each.definition for each in declarations.derived()}) == 4
    assert declarations.get_counter("customers:week(seen_at)").of == "customers"
    assert total.grouping(("day(seen_at)", "shop")) is groupings[2] and total.grouping(("shop", "day(seen_at)")) is None


@pytest.mark.parametrize("changed", [("Berlin", "Paris"), ("day(", "month("), ('last_seen = "seen_at"', "")])
def test_what_groups_and_days_mean_is_part_of_the_definition(changed: tuple[str, str]) -> None:
    lines = CUSTOMERS + 'by = ["day(seen_at)"]\nlast_seen = "seen_at"\ntime_zone = "Europe/Berlin"'
    before, after = (parse(text)[1][0] for text in (lines, lines.replace(*changed)))
    assert (before.definition, before.groupings) != (after.definition, after.groupings)


def test_next_shards_add_a_second_family_that_ingest_and_manage_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = CUSTOMERS + 'by = ["shop"]\nlast_seen = "seen_at"\ntag = "people"\nshards = 2\n'

    def declare(more: str) -> None:
        monkeypatch.setattr(declarations, "COUNTERS", parse(lines + more)[1])

    def names() -> list[str]:
        return [each.name for each in declarations.kept()]

    declare("next_shards = 16")
    assert names() == ["customers", "customers:shop", "customers@16", "customers@16:shop"]
    present, by_shop, following, _ = declarations.kept()
    assert declarations.derived() == (present, by_shop) and declarations.totals() == (present, following)
    assert declarations.get_part("customers@16:shop#07").next_of == "customers:shop"
    assert declarations.whole_of("customers@16:shop#07") == "customers@16:shop"
    assert declarations.families(by_shop) == (by_shop, declarations.get_counter("customers@16:shop"))
    assert list(map(triggers.key, (present, by_shop))) == list(map(triggers.key, declarations.kept()[2:]))
    before = {part.name: keys.of_counter(part.name) for part in declarations.parts()}
    declare("next_shards = 32")
    assert len({*before.values(), *(keys.of_counter(part.name) for part in declarations.parts())}) == 2 * (2 + 16 + 32)

    lines = lines.replace("shards = 2", "shards = 16")
    declare("")
    assert names() == ["customers", "customers:shop"]
    after = {part.name: keys.of_counter(part.name) for part in declarations.parts()}
    assert after == {name.replace("@16", ""): found for name, found in before.items() if "@16" in name}


def test_a_part_of_another_number_of_shards_shares_its_tag_and_no_key() -> None:
    def prefixes(shards: int) -> dict[str, str]:
        (counter,) = parse(f"{CUSTOMERS}shards = {shards}")[1]
        return {keys.tag_of(part): keys.keys_of(part).members for part in counter.parts}

    few, many = prefixes(255), prefixes(256)
    shared = few.keys() & many.keys()
    assert shared and all(few[tag] != many[tag] for tag in shared)
