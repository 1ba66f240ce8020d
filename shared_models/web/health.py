"""The answers of /livez and /readyz, the same in all three services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from shared_models.web.asgi import Answer, answer, refusal
from shared_models.web.problems import NOT_READY, Problem

ALIVE = answer(200, b'{"alive":true}', more={"Cache-Control": "no-store"})


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a service checked: by name, None if all is well, or a sentence. The service is also ready without those that
    are not `needed`."""

    checks: Mapping[str, str | None]
    needed: frozenset[str]

    @property
    def missing(self) -> list[str]:
        """What the service needs to do its work."""
        return [f"{name}: {wrong}" for name, wrong in self.checks.items() if wrong and name in self.needed]

    def answer(self) -> Answer:
        """200 {"ready": true, "degraded": false, "checks": {"redis": "ok"}}, or a problem 503 that names what is missing."""
        checks = {name: wrong or "ok" for name, wrong in self.checks.items()}
        if self.missing:
            return refusal(Problem(NOT_READY, "; ".join(self.missing), checks=checks))
        document = {"ready": True, "degraded": any(self.checks.values()), "checks": checks}
        return answer(200, msgspec.json.encode(document), more={"Cache-Control": "no-store"})
