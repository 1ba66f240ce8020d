"""The formulas of docs/sizing.md, and what the page calculates by them."""

from __future__ import annotations

import re
from itertools import takewhile

import pytest

from compose.local.ordinary_user import CHECKOUT
from loadtest.scale import formulas


def test_two_tables_give_what_a_row_and_a_member_cost() -> None:
    costs = formulas.solve((1000, 200, 1000 * 3 + 200 * 7), (1000, 500, 1000 * 3 + 500 * 7))
    assert (costs.row, costs.member) == (3, 7)
    assert costs.of(5000, 1000) == 22_000


def test_noise_gives_no_cost_below_zero() -> None:
    assert formulas.solve((1000, 200, 3000.0), (1000, 500, 2900.0)) == formulas.Costs(3.0, 0.0)
    assert formulas.solve((1000, 200, 100.0), (1000, 500, 1000.0)) == formulas.Costs(0.0, 0.5)


@pytest.mark.parametrize(
    ("members", "buckets", "old"),
    [
        (7 << 17, 1 << 17, 0),
        ((7 << 17) + 1, 1 << 18, 1 << 17),
        (8 << 17, 1 << 18, 1 << 17),
        ((8 << 17) + 1, 1 << 18, 0),
    ],
)
def test_a_full_set_has_its_old_buckets_until_each_of_them_is_moved(members: int, buckets: int, old: int) -> None:
    assert formulas.bucket_bytes(members) == 64 * (buckets + old)


def test_the_buckets_of_parts_grow_with_the_parts() -> None:
    assert formulas.redis_bytes(16 << 20, 24.0, 16) == 24 * (16 << 20) + 16 * formulas.bucket_bytes(1 << 20)


def numbers(text: str) -> list[float]:
    """Of a cell, in bytes and seconds; a number without a unit is none."""
    units = {"bytes": 1, "µs": 1e-6, "MB": 1e6, "GB": 1e9, "s": 1, "min": 60, "hour": 3600, "hours": 3600}
    found = re.findall(r"([\d.,]+) (bytes|µs|MB|GB|s|min|hours?)\b", text)
    return [float(number.replace(",", "")) * units[unit] for number, unit in found]


def table(heading: str) -> dict[str, list[list[float]]]:
    """The rows of the table of the page with this heading: their numbers, by the first cell."""
    lines = iter((CHECKOUT / "docs" / "sizing.md").read_text().splitlines())
    next(line for line in lines if line.startswith(heading))
    rows = [list(map(str.strip, line.split("|")[1:-1])) for line in takewhile(lambda line: line.startswith("|"), lines)]
    return {name: [numbers(cell) for cell in cells] for name, *cells in rows[1:]}


@pytest.mark.parametrize(("place", "members"), [(0, 10**8), (1, 10**9)])
def test_what_the_page_calculates_follows_from_what_it_says_was_measured(place: int, members: int) -> None:
    rows = 5 * members
    costs = {
        name: [cell[0] if cell else 0.0 for cell in (*cells, [])[:2]]
        for name, cells in table("| measured | a row |").items()
    }

    def of(*names: str) -> float:
        return sum(costs[name][0] * rows + costs[name][1] * members for name in names)

    disk = list(costs)[:5]
    reconcile = of("a reconcile that finds nothing")
    says = [[of(*disk)], [of("index on the member")]]
    for shards in (1, 16, 64):
        size = formulas.redis_bytes(members, 29, shards)
        says.append([size] if shards == 1 else [size, size / shards])
    says.append([2 * formulas.redis_bytes(members, 29) + 1e9])
    says += [[of("a cold build, one shard")], [of("… 16 shards")], [reconcile]]
    says += [[of("… that finds one member in a thousand missing, and as many extra")], [10 * reconcile]]
    says += [[of("`COUNT(DISTINCT)` of the member (of 50 million rows; 0.06 µs of the small tables)")]]
    calculated = table("| calculated |")
    assert len(calculated) == len(says)
    for (name, cells), expected in zip(calculated.items(), says, strict=True):
        assert cells[place] == pytest.approx(expected, rel=0.2), name
