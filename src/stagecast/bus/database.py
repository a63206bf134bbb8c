"""The file in which a process alone keeps its logs: SQLite, the last word per subject of each. Blocking.

Write-ahead log, synchronous=NORMAL: what is committed survives the end of the process, however that comes; the last
commits before a loss of power may be gone, and then the logs are taken for other ones, because clients may have seen
what is no longer there. One process at a time has the file, by SQLite's own exclusive lock.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from stagecast.errors import LogUnusable
from stagecast.messages import Entry
from stagecast.revision import identity_of

_logger = logging.getLogger(__name__)

LOGS: Final = ("log", "history")
SCHEMA: Final = 1
LOCK_PATIENCE: Final = 2.0
"""Seconds that an earlier process gets to let go of the file."""
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Stored(NamedTuple):
    """A log as it stands in the file; its entries by sequence."""

    identity: str
    sequence: int
    entries: list[Entry]


class Change(NamedTuple):
    """What is to be written into one log: entries in their order, and the subjects that it drops."""

    entries: Sequence[Entry] = ()
    dropped: Sequence[str] = ()


class Database:
    """An open file. To be used from one thread only.

    A damaged file is set aside under another name, with a warning, and begun anew.

    Raises:
        LogUnusable: another process has it, a later version wrote it, or it cannot be opened at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                _set_aside(path, str(error))
                self._open()
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        except OSError as error:
            raise LogUnusable(str(path), error.strerror or str(error), "give another folder with --data") from error

    def stored(self, log: str) -> Stored:
        """Return what the file has of a log."""
        find = self._connection.execute
        identity, sequence = find("SELECT identity, sequence FROM stream WHERE log = ?", (log,)).fetchone()
        rows = find("SELECT subject, sequence, payload, time FROM word WHERE log = ? ORDER BY sequence", (log,))
        return Stored(identity, sequence, [Entry(*row) for row in rows])

    def commit(self, changes: Mapping[str, Change]) -> None:
        """Write into the logs, by their names; all of it or, raising `sqlite3.Error`, nothing."""
        with _Transaction(self._connection) as write:
            for log, change in changes.items():
                # First what goes: a subject that was dropped may have a new word in this very transaction.
                dropped = [(log, subject) for subject in change.dropped]
                write.executemany("DELETE FROM word WHERE log = ? AND subject = ?", dropped)
                rows = [(log, each.subject, each.sequence, each.time, each.payload) for each in change.entries]
                write.executemany("REPLACE INTO word VALUES (?, ?, ?, ?, ?)", rows)
                reached = [(each.sequence, log) for each in change.entries[-1:]]
                write.executemany("UPDATE stream SET sequence = ? WHERE log = ?", reached)

    def probe(self) -> None:
        """Return if the file can be written again; else raise `sqlite3.Error`."""
        for statement in ("INSERT INTO ballast VALUES (zeroblob(65536))", "DELETE FROM ballast"):
            with _Transaction(self._connection) as write:
                write.execute(statement)

    def close(self) -> None:
        """Close the file, so that whoever opens it next knows that nothing is missing."""
        with suppress(sqlite3.Error), _Transaction(self._connection) as write:
            write.execute("UPDATE file SET boot = ''")
        self._connection.close()

    def _open(self) -> None:
        # What people asked for may have keys in it: URLs that models come from.
        self.path.touch(mode=0o600)
        self._connection = sqlite3.connect(self.path, timeout=LOCK_PATIENCE, isolation_level=None)
        try:
            self._prepare(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            connection.execute(f"PRAGMA {pragma}")
        with _Transaction(connection) as write:
            [version] = write.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                why = f"a later version of Stagecast wrote it (schema {version}, this one knows {SCHEMA})"
                raise LogUnusable(str(self.path), why, "run that version, or give another folder with --data")
            if version == 0:
                _make(write)
            _check(write)
            _claim(write, self.path)


class _Transaction:
    """``with _Transaction(connection) as write``: all of it or nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether the file is not what was written into it, or never was a database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def _make(write: sqlite3.Connection) -> None:
    write.execute("CREATE TABLE file (boot TEXT NOT NULL, inode INTEGER NOT NULL)")
    write.execute("INSERT INTO file VALUES ('', 0)")
    write.execute("CREATE TABLE ballast (space BLOB)")
    write.execute("CREATE TABLE stream (log TEXT PRIMARY KEY, identity TEXT NOT NULL, sequence INTEGER NOT NULL)")
    write.execute(
        "CREATE TABLE word (log TEXT NOT NULL, subject TEXT NOT NULL, sequence INTEGER NOT NULL, time REAL NOT NULL, "
        "payload BLOB NOT NULL, PRIMARY KEY (log, subject))"
    )
    for log in LOGS:
        write.execute("INSERT INTO stream VALUES (?, ?, 0)", (log, identity_of(time.time())))
    write.execute(f"PRAGMA user_version = {SCHEMA}")


def _check(write: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` where the file is damaged."""
    [found] = write.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _claim(write: sqlite3.Connection, path: Path) -> None:
    """Note whose the file is now; give the logs other identities where its last words may be missing."""
    boot, inode = write.execute("SELECT boot, inode FROM file").fetchone()
    now, place = _this_boot(), path.stat().st_ino
    if boot not in {"", now} or inode not in {0, place}:
        _logger.warning("%s was left by a machine that stopped, or is a copy: clients begin anew", path)
        for log, identity in write.execute("SELECT log, identity FROM stream").fetchall():
            write.execute("UPDATE stream SET identity = ? WHERE log = ?", (_later_than(identity), log))
    write.execute("UPDATE file SET boot = ?, inode = ?", (now, place))


def _this_boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return "unknown"


def _later_than(identity: str) -> str:
    """Return the identity of a stream that begins now: it orders after the one before, wherever the clock stands."""
    return max(identity_of(time.time()), f"{int(identity, 16) + 1:014x}")


def _set_aside(path: Path, why: str) -> None:
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    _logger.warning(
        "the log %s is damaged (%s): it is now %s, and a new one is begun; what had ended, was paused or had failed "
        "is not known any more, models on the disk are",
        path, why, aside.name,
    )  # fmt: skip


def _unusable(path: Path, error: sqlite3.Error) -> LogUnusable:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        why = "another `stagecast serve` has it"
        return LogUnusable(str(path), why, "end that one, or give this one a folder of its own with --data")
    if code == sqlite3.SQLITE_FULL:
        return LogUnusable(str(path), str(error), "free some space")
    return LogUnusable(str(path), str(error), "make it writable or move it away, or give another folder with --data")
