"""Ports, and whether who listens there answers."""

from __future__ import annotations

import socket

import pytest

from stagecast.loopback import accepts, free_port, is_free, is_ready
from tests.replica_stand_in import answering, replica_stand_in


def test_free_ports_are_free_and_never_given_twice() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    assert all(map(is_free, ports))


async def test_a_port_that_somebody_listens_on() -> None:
    port = free_port()
    assert not await accepts(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
        assert await accepts(port)


@pytest.mark.parametrize(
    ("readyz", "healthz", "expected"),
    [(200, 500, True), (503, 200, False), (404, 200, True), (404, 503, False), (500, 200, False)],
)
async def test_ready_is_what_readyz_says_and_healthz_where_there_is_none(
    readyz: int, healthz: int, expected: bool
) -> None:
    async with replica_stand_in() as server:
        server.routes = {"GET /readyz": answering({}, readyz), "GET /healthz": answering({}, healthz)}
        assert await is_ready(int(server.url.rpartition(":")[2])) is expected


async def test_nobody_is_not_ready() -> None:
    assert not await is_ready(free_port())
