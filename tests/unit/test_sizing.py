"""The formulas of docs/sizing.md, and what the page calculates by them."""

from __future__ import annotations

import pytest

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
