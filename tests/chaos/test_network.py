"""Real namespaces: what a cut does to connections that are open, and that nothing of them is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.network import PREFIX, Network, network, remove

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]

# Says what it hears, one line each time, and "silence" where there is none for a while.
LISTENER = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000)) as connection:
    connection.settimeout(0.3)
    while True:
        try:
            heard = connection.recv(4096)
        except TimeoutError:
            heard = b"silence"
        print(heard.decode() or "closed", flush=True)
"""
SPEAKER = """
import socket, sys, time
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while True:
        connection.sendall(b".")
        time.sleep(0.02)
"""


@pytest.fixture
def made() -> Iterator[Network]:
    with network() as made:
        yield made


def start(made: Network, name: str, script: str, *arguments: str) -> subprocess.Popen[str]:
    command = made.placed(name, (sys.executable, "-S", "-u", "-c", script, *arguments))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_cut_is_silent_and_an_open_connection_goes_on_when_it_is_healed(made: Network) -> None:
    address = made.host("speaker")
    with start(made, "speaker", SPEAKER, address) as speaker, start(made, "idle", "input()"):
        assert said(speaker) == "ready"
        with start(made, "listener", LISTENER, address) as listener:
            assert set(said(listener)) == {"."}
            made.cut("listener", ["speaker"])
            while said(listener) != "silence":
                pass
            assert said(listener) == "silence"
            before = made.received("listener")
            made.heal("idle")
            assert said(listener) == "silence"
            made.heal("listener")
            while set(said(listener)) != {"."}:
                pass
            assert made.received("listener") > before
            listener.kill()
        speaker.kill()


def test_nothing_is_left_of_it_whatever_happens() -> None:
    class Mishap(Exception):
        pass

    def left() -> list[str]:
        own = f"{PREFIX}{os.getpid()}"
        namespaces = Path("/run/netns")
        found = [*Path("/sys/class/net").iterdir(), *(namespaces.iterdir() if namespaces.exists() else ())]
        return [path.name for path in found if path.name.startswith(own)]

    def meet_with_a_mishap() -> None:
        with network() as made:
            made.host("one")
            made.host("two")
            assert len(left()) == 5  # a bridge, and for each of them its end of a pair and a namespace
            raise Mishap

    with pytest.raises(Mishap):
        meet_with_a_mishap()
    assert left() == []
    remove(os.getpid())
