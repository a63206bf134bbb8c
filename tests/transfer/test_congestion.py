from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stagecast.store import Store
from stagecast.transfer import FileServer, congestion, tcp_info
from stagecast.transfer.congestion import control_of

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> str:
    """A system whose own control counts as one with a timer; Linux lets only root set it for all."""
    with socket.socket() as fresh:
        system = control_of(fresh)
    if system == "reno":
        pytest.skip("the system is set to reno, the one control that everybody is allowed to take")
    monkeypatch.setattr(congestion, "_PACED", system)
    monkeypatch.setattr(congestion, "_PLAIN", ("nonsense", "reno"))
    return system


def accepted(listener: socket.socket) -> socket.socket:
    with socket.create_connection(listener.getsockname()):
        return listener.accept()[0]


def test_a_near_client_is_sent_to_without_a_timer(paced: str) -> None:
    with socket.create_server(LOOPBACK) as listener:
        congestion.begin(listener)
        with accepted(listener) as connection:
            congestion.settle(connection)
            assert control_of(connection) == "reno"


def test_a_far_client_gets_what_the_system_is_set_to(paced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(LOOPBACK) as listener:
        congestion.begin(listener)
        with accepted(listener) as connection:
            monkeypatch.setattr(tcp_info, "round_trip", lambda _: 0.002)
            congestion.settle(connection)
            assert control_of(connection) == paced


def test_another_choice_of_the_system_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(congestion, "_PACED", "a control that paces")
    with socket.create_server(LOOPBACK) as listener, socket.socket() as fresh:
        congestion.begin(listener)
        with accepted(listener) as connection:
            monkeypatch.setattr(tcp_info, "round_trip", lambda _: 0.002)
            congestion.settle(connection)
            assert control_of(connection) == control_of(listener) == control_of(fresh) != ""


def test_a_round_trip_that_nobody_knows_counts_as_far() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert tcp_info.round_trip(other) > congestion.NEAR
        assert control_of(other) == ""
        congestion.settle(other)


def test_a_file_server_begins_so(paced: str, tmp_path: Path) -> None:
    with FileServer(Store(tmp_path / "models", tmp_path), "127.0.0.1") as server:
        assert control_of(server._listener) == "reno"
