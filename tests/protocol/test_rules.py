"""Without any one of its rules the protocol breaks: the search finds an interleaving that breaks a promise."""

from __future__ import annotations

import pytest

from tests.protocol.rules import RULES
from tests.protocol.search import search
from tests.protocol.telling import passage, tell, written
from tests.protocol.worlds import NEEDED, NOT_FLUSHED, WITHOUT_THE_LOCK

# They take seconds: two runs, or two passes.
SLOW = {
    *("all taken out", "later of both", "compare change", "not after the fork", "verify build", "timelines"),
    *("source of a pass", "settled once", "compare build", "claim"),
}


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[pytest.mark.deep] if rule in SLOW else []) for rule in RULES]
)
def test_without_this_rule_some_interleaving_breaks_it(rule):
    world = dict(NEEDED[rule])
    others = world.pop("without", set())
    if others:
        assert search(**world, without=others).broken is None, "the rule makes up for these"
    result = search(**world, without=others | {rule})
    assert result.broken is not None
    told = passage(rule, result.broken, tell(result.path))
    assert written(rule) == told, "python -m tests.protocol.telling writes it into docs/protocol.md"


@pytest.mark.parametrize("reader", WITHOUT_THE_LOCK)
def test_without_the_lock_whoever_reads_the_table_takes_a_rewritten_one_for_empty(reader):
    world = WITHOUT_THE_LOCK[reader]
    assert search(**world).broken is None
    assert search(**world, without={"lock"}).broken is not None


@pytest.mark.parametrize("taken_back", NOT_FLUSHED)
def test_what_a_primary_shows_before_it_is_on_its_disk_is_not_believed(taken_back):
    world = NOT_FLUSHED[taken_back]
    assert search(**world).broken is None
    assert search(**world, without={"flushed"}).broken is not None


def test_a_rule_that_is_not_known_cannot_be_left_out():
    with pytest.raises(ValueError, match="no such rule: fences"):
        search(without={"fences"})
