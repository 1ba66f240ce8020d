"""Groups and last days: the protocol holds in every interleaving, and breaks without any one of its rules.

For each storage one element of a counter: ann in a group, or ann and her last day. `elements` says what happens around her.
"""

from __future__ import annotations

import pytest

from tests.protocol.elements import LARGE, NEEDED, RULES, WORLDS, search
from tests.protocol.telling import join, passage, written


@pytest.mark.parametrize(
    "world",
    [pytest.param(each, marks=[pytest.mark.deep, pytest.mark.long] if each in LARGE else []) for each in WORLDS],
)
def test_no_interleaving_breaks_groups_and_days(world: str) -> None:
    result = search(**WORLDS[world])
    assert result.broken is None, result.steps
    assert result.states > 1_000


@pytest.mark.parametrize("rule", RULES)
def test_without_this_rule_some_interleaving_breaks_groups_or_days(rule: str) -> None:
    result = search(**WORLDS[NEEDED[rule]], without={rule})
    assert result.broken is not None
    told = passage(rule, result.broken, join(result.steps))
    assert written(rule) == told, "python -m tests.protocol.telling writes it into docs/protocol.md"
