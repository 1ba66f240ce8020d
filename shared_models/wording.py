"""The result of a reconcile in words, for query's page and manage's command line."""

from __future__ import annotations


def found_in_words(missing: int, extra: int, *, repaired: bool) -> str:
    """What a repair has repaired, or what a check has found and not changed: "2 missing", "1 member left"."""
    if not missing and not extra:
        return "no drift"
    if not repaired:
        return ", ".join(f"{many:,} {kind}" for many, kind in ((missing, "missing"), (extra, "extra")) if many)
    words = []
    if missing:
        were = "was" if missing == 1 else "were"
        words.append(f"{members(missing)} {were} missing and {were} added")
    if extra:
        words.append(f"{members(extra)} left")
    return ", ".join(words)


def members(many: int) -> str:
    return "1 member" if many == 1 else f"{many:,} members"
