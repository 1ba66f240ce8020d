"""Groups and last days: the protocol holds in every interleaving, and breaks without any one of its rules.

For each storage one element of a counter: ann in a group, or ann and her last day. `elements` says what happens around her.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.protocol.elements import RULES, search

DAYS: dict[str, Any] = {"storage": "last_seen", "days": (2,), "old": (3,), "passes": 1}
GROUP: dict[str, Any] = {"storage": "groups", "days": (1,), "passes": 1, "menders": 1, "damages": 1, "drops": 1}
DEPARTURE: dict[str, Any] = {"departers": 1, "departures": 1}
COLD: dict[str, Any] = {"old": (), "warm": False, "fills": 1}

WORLDS: dict[str, dict[str, Any]] = {
    "two departures": {**DAYS, **DEPARTURE, "departures": 2},
    "two keepers": {**DAYS, **DEPARTURE, "passes": 2, "departers": 2},
    "two keepers, and a replica that comes back earlier": {**DAYS, **DEPARTURE, "departers": 2, "backs": 1},
    "a run next to a departure": {**DAYS, **DEPARTURE, "runs": 1},
    "a run, and a replica that comes back earlier": {**DAYS, **DEPARTURE, "runs": 1, "backs": 1},
    "a build of days": {**DAYS, **DEPARTURE, **COLD, "days": (2, 3), "old": (1,)},
    "days changed by hand under a run": {**DAYS, "damages": 1, "runs": 1, "fills": 1, "backs": 1},
    "days changed by hand, and a departure": {**DAYS, **DEPARTURE, "damages": 1, "fills": 1},
    "a group changed by hand": {**GROUP, "fills": 1},
    "a group changed by hand, and a replica that comes back earlier": {**GROUP, "backs": 1},
    "a group changed twice": {**GROUP, "damages": 2, "drops": 2},
    "a group changed twice, two keepers": {**GROUP, "damages": 2, "drops": 2, "menders": 2},
    "a group changed under a run": {**GROUP, "days": (), "old": (1,), "runs": 1, "erases": 1},
    "a group changed under a build": {**GROUP, **COLD, "runs": 1},
    "a group changed, and a promotion": {**GROUP, "passes": 0, "promotions": 1, "fills": 1},
}

# A world in which each rule is needed.
NEEDED = {
    **dict.fromkeys(("later day", "lowered", "again", "begins again", "earlier record"), "two departures"),
    **dict.fromkeys(("last day behind the fence", "day of a departure"), "two departures"),
    **dict.fromkeys(("again of a run", "later is suspected"), "a run next to a departure"),
    "suspects below the cursor": "a run, and a replica that comes back earlier",
    "begins with nothing": "days changed by hand, and a departure",
    **dict.fromkeys(("size of a group", "broken", "fence of a mend"), "a group changed by hand"),
    **dict.fromkeys(("token of a drop", "compare the drop"), "a group changed twice"),
    "last of a group": "a group changed under a build",
}


@pytest.mark.parametrize("world", WORLDS)
def test_no_interleaving_breaks_groups_and_days(world: str) -> None:
    result = search(**WORLDS[world])
    assert result.broken is None, result.steps
    assert result.states > 1_000


@pytest.mark.parametrize("rule", RULES)
def test_without_this_rule_some_interleaving_breaks_groups_or_days(rule: str) -> None:
    assert search(**WORLDS[NEEDED[rule]], without={rule}).broken is not None
