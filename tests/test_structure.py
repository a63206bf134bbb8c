"""The ladder of DESIGN section 7, as a table. A new module must be placed here, at the height where it belongs.

A module imports from lower rows, and within its own cell from names that stand before it. Below the processes the two
columns do not know each other: the file engine works with no bus, the control plane with no disk.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

PACKAGE: Final = Path(__file__).parent.parent / "src" / "stagecast"
LONGEST: Final = 400
LONGEST_ENGINE: Final = 300
"""Lines of a file of the transfer and of the store."""

# From the lowest row to the highest: (row, {column: names in the order in which they may import each other}).
LADDER: Final = (
    ("vocabulary", {"BOTH": "errors quantities revision messages manifest settings"}),
    (
        "pure",
        {
            "FILES": "pieces plan eviction",
            "CONTROL": (
                "server_clock subjects operations urgency broadcast mirror fold limits unheard rows leases turns "
                "horizon leftovers past placement event_stream"
            ),
        },
    ),
    (
        "seams",
        {
            "FILES": (
                "address durable bulk footprint weights reading copying publication reservation neighbours disk "
                "journal records known_files adoption status part_files partial draft_file draft workshop marks "
                "volume store "
                "gathering stocktaking verification repair leash recipes"
            ),
            "CONTROL": (
                "bus bus.memory bus.whole bus.database bus.sqlite bus.streams bus.connection bus.consumer "
                "bus.questions bus.nats"
            ),
        },
    ),
    (
        "engines",
        {
            "FILES": (
                "upstream stream transfer.limit transfer.waits transfer.tcp_info transfer.congestion transfer.tls "
                "transfer.pace transfer.ramp transfer.connection transfer.head transfer.wanted transfer.source "
                "transfer.swarm transfer.standings transfer.rests transfer.active transfer.assignments "
                "transfer.report transfer.news transfer.whereabouts transfer.ledger "
                "transfer.crew transfer.intake transfer.stream transfer.scout transfer.pull transfer.sends "
                "transfer.request transfer.bundles transfer.outlet transfer.exchange transfer.serve transfer"
            ),
            "CONTROL": (
                "changes meter archive ownership restatement mending tracker presence history forgetting commands "
                "announcer turnstile duty remains view feed participant operation"
            ),
        },
    ),
    ("verbs", {"FILES": "gallery installed spending installation", "CONTROL": "router proxy"}),
    (
        "hosts",
        {
            "BOTH": (
                "work throttle listener loopback listening output backend supervision node room verifier collection "
                "holders keeper "
                "loader metrics instances"
            )
        },
    ),
    (
        "processes",
        {
            "FRONTEND": (
                "frontend frontend.docs frontend.encoded frontend.refusals frontend.segment frontend.gate "
                "frontend.events frontend.replica frontend.installs frontend.operations_api frontend.mounted "
                "frontend.models_api frontend.nodes_api frontend.disk_api frontend.limits_api frontend.openai "
                "frontend.application"
            ),
            "WORKER": "worker",
        },
    ),
    (
        "composition",
        {
            "BOTH": (
                "service composition child balancer cluster answers session client seen following display disk_tables "
                "options remote upkeep demo_vectors demo_model demo_checks demo_view demo_job demo_report demo cli "
                "__main__ stagecast"
            ),
        },
    ),
)
MEETING: Final = "hosts"
LADDER_OF_FILES: Final = frozenset(dict(LADDER)["pure"]["FILES"].split() + dict(LADDER)["seams"]["FILES"].split())
PURE_OF_THE_ENGINE: Final = "pace ramp head swarm assignments report"
IMPURE: Final = frozenset(
    [
        "aiohttp", "asyncio", "blake3", "concurrent", "ctypes", "http", "io", "litestar", "logging", "multiprocessing",
        "nats", "os", "pathlib", "random", "secrets", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
        "subprocess",
        "sys", "tempfile", "threading", "time", "urllib", "uuid", "yaml",
    ]
)  # fmt: skip


class Place(NamedTuple):
    """Where a module stands."""

    row: int
    column: str
    rank: int


NOWHERE: Final = Place(-1, "", -1)
HEIGHTS: Final = {row: height for height, (row, _) in enumerate(LADDER)}
PLACES: Final = {
    module: Place(height, column, rank)
    for height, (_, columns) in enumerate(LADDER)
    for column, names in columns.items()
    for rank, module in enumerate(names.split())
}


def named(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "stagecast"


MODULES: Final = {named(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imported(module: str) -> frozenset[str]:
    """Return everything that a module imports, anywhere in it: dotted names, ours without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            origin = node.module or ""
            found |= {_deepest(origin, alias.name) for alias in node.names}
    return frozenset(found)


def _deepest(origin: str, name: str) -> str:
    return f"{origin}.{name}" if f"{origin}.{name}".removeprefix("stagecast.") in MODULES else origin


def ours(module: str) -> set[str]:
    """Return which of our modules a module imports."""
    inside = {name.removeprefix("stagecast.") for name in imported(module) if name.partition(".")[0] == "stagecast"}
    return inside - {module}


def objection(importer: Place, other: Place) -> str:
    """Return why one place may not import the other, or nothing."""
    if other.row > importer.row:
        return "upward"
    is_same_column = importer.column == other.column
    if other.row == importer.row and not (is_same_column and other.rank < importer.rank):
        return "sideways"
    is_below = importer.row < HEIGHTS[MEETING]
    if is_below and "BOTH" not in {importer.column, other.column} and not is_same_column:
        return "across the columns"
    return ""


def test_every_module_has_a_place_and_every_place_a_module() -> None:
    assert MODULES.keys() - PLACES.keys() == set(), "place these in LADDER"
    assert PLACES.keys() - MODULES.keys() == set(), "these are gone: take them out of LADDER"


@pytest.mark.parametrize("module", sorted(MODULES.keys() & PLACES.keys()))
def test_imports_go_down_the_ladder(module: str) -> None:
    wrong = {other: objection(PLACES[module], PLACES[other]) for other in ours(module) & PLACES.keys()}
    assert {other: why for other, why in wrong.items() if why} == {}


def test_there_is_no_cycle() -> None:
    left = {module: ours(module) for module in MODULES}
    while free := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


@pytest.mark.parametrize("module", [name for name in MODULES if PLACES.get(name, NOWHERE).row == HEIGHTS["pure"]])
def test_the_pure_row_does_nothing_but_compute(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} & IMPURE == set()


@pytest.mark.parametrize("module", ["errors", "revision", "messages"])
def test_the_words_do_nothing_either(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} & IMPURE == set()


@pytest.mark.parametrize("module", [f"transfer.{name}" for name in PURE_OF_THE_ENGINE.split()])
def test_what_decides_in_the_engine_does_nothing_but_compute(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} & IMPURE == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_too_long(module: str) -> None:
    is_engine = module.startswith("transfer") or module in LADDER_OF_FILES
    assert len(MODULES[module].read_text().splitlines()) <= (LONGEST_ENGINE if is_engine else LONGEST)


def test_nothing_is_called_by_a_word_that_says_nothing() -> None:
    empty = {"utils", "util", "core", "helpers", "managers", "manager", "services", "common", "misc"}
    assert {part for module in MODULES for part in module.split(".")} & empty == set()


def test_the_table_would_object() -> None:
    places = {name: PLACES[name] for name in ("tracker", "store", "fold", "worker", "frontend.events", "cli", "errors")}
    assert objection(places["fold"], places["tracker"]) == "upward"
    assert objection(places["tracker"], places["store"]) == "across the columns"
    assert objection(places["worker"], places["frontend.events"]) == "sideways"
    assert objection(PLACES["operations"], PLACES["broadcast"]) == "sideways"
    assert objection(places["cli"], places["errors"]) == objection(places["tracker"], places["fold"]) == ""
