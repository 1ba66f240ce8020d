"""Leases, with a Redis in this process."""

from __future__ import annotations

from typing import cast

import pytest
from fakeredis import FakeStrictRedis
from redis import Redis

from manage_service.leases import Lease, LeaseLost, held, read_holder
from shared_models.nodes import Nodes, only
from shared_models.protocol import keys


@pytest.fixture
def nodes() -> Nodes[Redis]:
    return only(cast("Redis", FakeStrictRedis()))


def test_one_of_two_has_it_until_it_gives_it_back(nodes: Nodes[Redis]) -> None:
    one, other = Lease(nodes, "keeper"), Lease(nodes, "keeper")
    assert one.acquire() and not other.acquire() and read_holder(nodes, "keeper") is not None
    one.release()
    assert read_holder(nodes, "keeper") is None and other.acquire()
    one.release()  # it is the other one's now
    assert read_holder(nodes, "keeper") is not None


def test_a_lease_that_is_gone_is_not_renewed(nodes: Nodes[Redis], monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(nodes, "run:1")
    with held(lease) as ours:
        assert ours
        monkeypatch.setattr(lease, "_renewed_at", float("-inf"))  # it is time
        lease.renew()
        nodes.of("any").delete(keys.of_lock("run:1"))
        monkeypatch.setattr(lease, "_renewed_at", float("-inf"))
        with pytest.raises(LeaseLost):
            lease.renew()
