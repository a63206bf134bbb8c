"""A network of namespaces: each process of a cluster has an address of its own, and can be cut off from any other.

All of them hang on one bridge, whose address is this machine's. A cut gives each of two namespaces a wrong hardware
address for the other one: what they send to each other goes nowhere, without a word, while connections stay open. That
is how a switch that died looks; a blackhole route would refuse new connections at once.
"""

from __future__ import annotations

import ipaddress
import os
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stagecast.errors import StagecastError

PREFIX: Final = "chaos"
_NOWHERE: Final = "02:00:00:00:00:01"
"""A hardware address that nobody has: the bridge floods it, and everybody drops it."""
_CANDIDATES: Final = 200


class NoNetwork(StagecastError):
    """Namespaces cannot be had here."""

    code = "no_network"

    def __init__(self, why: str) -> None:
        super().__init__(f"no network namespaces: {why}")


class Network:
    """A `stagecast.cluster.Ground`. Made by `network`."""

    def __init__(self, subnet: ipaddress.IPv4Network) -> None:
        self._hosts = subnet.hosts()
        self._length = subnet.prefixlen
        self._id = f"{PREFIX}{os.getpid()}"
        self.address = str(next(self._hosts))
        """This machine's own address on the bridge."""
        self._addresses: dict[str, str] = {}
        self._cuts: set[tuple[str, str]] = set()

    def host(self, name: str) -> str:
        """Return the address of a process; its namespace is made when it is asked for first."""
        if name not in self._addresses:
            self._addresses[name] = str(next(self._hosts))
            self._add(name)
        return self._addresses[name]

    def placed(self, name: str, command: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command that runs ``command`` in the namespace of a process."""
        self.host(name)
        return ("ip", "netns", "exec", self._namespace(name), *command)

    def sent(self, name: str) -> int:
        """Return the bytes that have left a process so far, headers included; they are counted past its death."""
        return self._count(name, "rx_bytes")

    def received(self, name: str) -> int:
        """Return the bytes that were sent to a process so far."""
        return self._count(name, "tx_bytes")

    def cut(self, name: str, others: Iterable[str]) -> None:
        """Let nothing pass between a process and others, in both directions, until `heal`."""
        for other in others:
            for here, there in ((name, other), (other, name)):
                self._cuts.add((here, there))
                self._ip(here, "neigh", "replace", self.host(there), "lladdr", _NOWHERE, *_PERMANENT)

    def heal(self, name: str) -> None:
        """Undo every cut between a process and others."""
        for here, there in [pair for pair in self._cuts if name in pair]:
            self._ip(here, "neigh", "del", self.host(there), "dev", "eth0")
            self._cuts.discard((here, there))

    def open(self) -> None:
        """Make the bridge. Raises `NoNetwork`."""
        _run("link", "add", self._id, "type", "bridge")
        _run("addr", "add", f"{self.address}/{self._length}", "dev", self._id)
        _run("link", "set", self._id, "up")

    def close(self) -> None:
        """Take everything down that was made, as far as it stands."""
        remove(os.getpid())

    def _add(self, name: str) -> None:
        namespace, outer = self._namespace(name), f"{self._id}v{len(self._addresses)}"
        _run("netns", "add", namespace)
        _run("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("link", "set", outer, "master", self._id, "up")
        self._ip(name, "addr", "add", f"{self._addresses[name]}/{self._length}", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip(name, "link", "set", device, "up")

    def device(self, name: str) -> str:
        """Return this machine's end of a process's pair of devices, which sends what the process receives."""
        return f"{self._id}v{list(self._addresses).index(name) + 1}"

    def _count(self, name: str, counter: str) -> int:
        return int(Path(f"/sys/class/net/{self.device(name)}/statistics/{counter}").read_text())

    def _ip(self, name: str, *arguments: str) -> None:
        _run("-n", self._namespace(name), *arguments)

    def _namespace(self, name: str) -> str:
        return f"{self._id}-{name}"


_PERMANENT: Final = ("dev", "eth0", "nud", "permanent")


@contextmanager
def network() -> Iterator[Network]:
    """Yield a network that is gone with the block. Raises `NoNetwork` where it cannot be made."""
    if os.geteuid() != 0:
        raise NoNetwork("they need root")
    if shutil.which("ip") is None:
        raise NoNetwork("they need `ip` of iproute2")
    for pid in _abandoned():
        remove(pid)
    made = Network(_free_subnet())
    try:
        made.open()
        yield made
    finally:
        made.close()


def remove(pid: int) -> None:
    """Remove what the run with this process id has made."""
    for namespace in _namespaces():
        if namespace.startswith(f"{PREFIX}{pid}-"):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
    for device in _devices():
        if device == f"{PREFIX}{pid}" or device.startswith(f"{PREFIX}{pid}v"):
            # The other end of a pair is gone with its namespace, a moment later, and this end with it.
            subprocess.run(["ip", "link", "del", device], capture_output=True, check=False)


def _abandoned() -> set[int]:
    """Return the process ids of runs that ended without removing what they had made."""
    digits = {name.removeprefix(PREFIX).split("v")[0].split("-")[0] for name in (*_namespaces(), *_devices())}
    return {int(each) for each in digits if each.isdigit() and not Path(f"/proc/{each}").exists()}


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    return [path.name for path in folder.iterdir() if path.name.startswith(PREFIX)] if folder.exists() else []


def _devices() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(PREFIX)]


def _free_subnet() -> ipaddress.IPv4Network:
    """Return a network of 10/8 that this machine has no route to but its default one."""
    lines = _run("-4", "route", "show", "table", "all").splitlines()
    words = [word for line in lines for word in line.split()[:2]]
    taken = [ipaddress.ip_network(word, strict=False) for word in words if word[0].isdigit()]
    for _ in range(_CANDIDATES):
        subnet = ipaddress.IPv4Network(f"10.{random.randrange(64, 250)}.{random.randrange(256)}.0/24")
        if not any(isinstance(each, ipaddress.IPv4Network) and each.overlaps(subnet) for each in taken):
            return subnet
    raise NoNetwork("no network of 10/8 is free")


def _run(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNetwork(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
    return done.stdout
