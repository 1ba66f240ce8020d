"""The protocol holds in every interleaving, and not without any one of its rules."""

from __future__ import annotations

import pytest

from tests.protocol.search import RULES, search


@pytest.mark.parametrize(
    "world",
    [
        {"ingests": 2, "erases": 1, "sweeps": 2, "passes": 1},
        {"ingests": 2, "erases": 1, "sweeps": 1, "passes": 2},
        {"ingests": 2, "erases": 1, "sweeps": 1, "passes": 1, "backs": 1},
        {"ingests": 1, "erases": 0, "sweeps": 0, "passes": 1, "losses": 2},
        {"ingests": 2, "erases": 0, "sweeps": 0, "passes": 1, "losses": 1, "warm": False},
        {"ingests": 1, "erases": 1, "sweeps": 0, "passes": 1, "losses": 1, "backs": 1, "warm": False},
    ],
    ids=str,
)
def test_no_interleaving_breaks_the_protocol(world):
    broken, states = search(**world)
    assert broken is None
    assert states > 1_000


# The smallest world in which each rule is needed.
NEEDED = {
    "token": {"ingests": 2, "erases": 1, "sweeps": 2},
    "fence": {"ingests": 2, "erases": 1, "sweeps": 1},
    "cursor fence": {"ingests": 1, "erases": 0, "sweeps": 1, "passes": 0, "losses": 1, "backs": 1, "warm": False},
    "claim": {"ingests": 2, "erases": 1, "sweeps": 1, "passes": 1, "backs": 1},
    "unmark": {"ingests": 2, "erases": 1, "sweeps": 1},
    "unmark in catch-up": {"ingests": 2, "erases": 1, "sweeps": 1, "passes": 1},
    "compare": {"ingests": 1, "erases": 0, "sweeps": 0, "passes": 1, "losses": 1, "without": {"one connection"}},
    "one connection": {"ingests": 1, "erases": 0, "sweeps": 0, "passes": 1, "losses": 1},
    "horizon": {"ingests": 1, "erases": 1, "sweeps": 0, "passes": 1},
    "fill lsn": {"ingests": 1, "erases": 0, "sweeps": 0, "passes": 0, "backs": 1, "warm": False},
    "fill position": {"ingests": 1, "erases": 0, "sweeps": 0, "passes": 0, "losses": 1, "warm": False},
}


@pytest.mark.parametrize("rule", RULES)
def test_without_this_rule_some_interleaving_breaks_it(rule):
    world = dict(NEEDED[rule])
    without = world.pop("without", set()) | {rule}
    assert search(**world, without=without)[0] is not None
