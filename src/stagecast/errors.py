"""Every error that Stagecast raises on purpose.

::

    StagecastError
    ├── BadInput                  400   what was given cannot be meant
    │   ├── InvalidName
    │   ├── InvalidQuantity
    │   └── InvalidManifest
    ├── Unauthorized              401
    ├── CrossOrigin               403   a page of another site asks
    ├── NameTaken                 409
    ├── Unknown                   404   a model, node, operation, gallery entry that nobody knows
    ├── WrongState                409   known, but the state forbids it
    ├── NotEnoughSpace            507
    ├── NodeRefused               502   a node could not do what was asked of it
    ├── TransferFailed            502   no holder could give the bytes
    │   ├── HolderFailed
    │   │   └── SourceRefused       upstream said no: asking again will not help
    │   ├── HoldersFailed
    │   ├── PieceCorrupt
    │   └── DigestMismatch
    ├── Interrupted               409   the operation was cancelled or paused from outside
    ├── BusError                  503
    │   ├── BusUnavailable
    │   │   └── LogNotWritten           the disk takes nothing more of a lone process's log
    │   ├── LogUnusable                 the file of a lone process's log cannot be opened
    │   ├── BusUnsuitable
    │   ├── NobodyListens
    │   └── AppendConflict
    ├── Busy                      409   somebody else is at it right now
    ├── Fenced                    409   another process owns the operation now
    ├── ReplicaBehind             503
    ├── BackendFailed             502
    │   └── BackendUnreached            nobody took the connection: nothing was sent, and another may be asked
    ├── ModelLoading              503
    └── NotReady                  503

Errors take typed facts and build their own message: what happened, to what, and what to do. ``code`` is the stable
word that programs compare; ``status`` is the HTTP status (RFC 9110) a replica answers with.
"""

from __future__ import annotations

from typing import ClassVar


class StagecastError(Exception):
    """Base of everything raised on purpose. ``message`` is one line for people."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(StagecastError):
    """What was given cannot be meant; nothing was done."""

    code = "bad_input"
    status = 400


class InvalidName(BadInput):
    """A name that cannot be a model's or node's."""

    code = "invalid_name"

    def __init__(self, what: str, name: str, why: str) -> None:
        super().__init__(f"{name!r} cannot be the name of a {what}: {why}")


class InvalidQuantity(BadInput):
    """A size or rate that does not read as one, or ``is_beyond`` all that there is."""

    code = "invalid_quantity"

    def __init__(self, text: str, example: str, *, is_beyond: bool = False) -> None:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        why = "is more than anything holds or moves" if is_beyond else "is not a size or rate"
        super().__init__(f"{shown!r} {why}; write it like {example}")


class InvalidManifest(BadInput):
    """A manifest whose parts do not fit together."""

    code = "invalid_manifest"

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"the manifest of {model!r} is not usable: {why}")


class Unauthorized(StagecastError):
    """No key, or a wrong one. Says nothing else."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__("unauthorized")


class CrossOrigin(StagecastError):
    """A browser asks for a page of another site to change something here."""

    code = "cross_origin"
    status = 403

    def __init__(self, origin: str) -> None:
        super().__init__(f"pages of {origin} may not change anything here; open this replica's own page")


class NameTaken(StagecastError):
    """Another living process speaks for a node of this name."""

    code = "name_taken"
    status = 409

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(f"a living {kind} is called {name!r} already; choose another name with --name")


class Unknown(StagecastError):
    """Nobody knows a thing of this kind by this name."""

    code = "not_found"
    status = 404

    def __init__(self, what: str, name: str, known: list[str] | None = None) -> None:
        hint = f"; known: {', '.join(sorted(known)[:10])}" if known else ""
        super().__init__(f"no {what} {name!r} is known{hint}")
        self.what = what
        self.name = name


class WrongState(StagecastError):
    """The operation is known, but its state forbids what was asked."""

    code = "wrong_state"
    status = 409

    def __init__(self, operation: str, state: str, verb: str) -> None:
        super().__init__(f"cannot {verb} {operation}: it is {state}")


class NotEnoughSpace(StagecastError):
    """The disk has no room for what is still to come. Sizes in bytes.

    ``free`` is what the disk has, ``promised`` what of it other transfers were promised, ``total`` its size if known.
    """

    code = "not_enough_space"
    status = 507

    def __init__(
        self, node: str, path: str, needed: int, free: int, present: int = 0, promised: int = 0, *, total: int = 0
    ) -> None:
        where = f"{node}: " if node else ""
        of_these = f" of which {promised:,} are promised to other transfers," if promised else ""
        super().__init__(
            f"{where}{path} has {free:,} bytes free,{of_these} but {needed:,} more are needed "
            f"({present:,} are there already); free some space or use another node, then retry"
        )
        self.needed = needed
        self.free = free
        self.present = present
        self.promised = promised
        self.is_hopeless = 0 < total < needed
        """Whether even the empty disk would have no room."""


class NodeRefused(StagecastError):
    """A node could not do what was asked of it."""

    code = "node_refused"
    status = 502

    def __init__(self, node: str, why: str) -> None:
        super().__init__(f"{node}: {why}")


class TransferFailed(StagecastError):
    """No holder could give the bytes that are missing."""

    code = "transfer_failed"
    status = 502


class HolderFailed(TransferFailed):
    """One holder did not give what was asked of it."""

    code = "holder_failed"

    def __init__(self, holder: str, why: str) -> None:
        super().__init__(f"holder {holder}: {why}")
        self.holder = holder
        self.why = why


class HolderBusy(HolderFailed):
    """A holder serves as many as it can just now; that is no failure of its."""

    code = "holder_busy"


class PieceGiven(HolderBusy):
    """A holder gave that piece just now to somebody who passes it on; another piece is wanted more."""

    code = "piece_given"


class SourceRefused(HolderFailed):
    """Upstream answered, and the answer is no; asking again will not help."""

    code = "source_refused"


class HoldersFailed(TransferFailed):
    """No holder gave a byte for too long; ``causes`` has each one's last failure by its name. ``missing`` in bytes."""

    def __init__(self, model: str, missing: int, patience: float, causes: dict[str, str]) -> None:
        each = "; ".join(f"{holder}: {why}" for holder, why in sorted(causes.items())) or "nobody holds it"
        super().__init__(
            f"{missing:,} bytes of {model} are missing, and for {patience:g} s no holder gave one ({each}); "
            "what has arrived is kept: retry when a holder is back"
        )
        self.causes = causes


class PieceCorrupt(TransferFailed):
    """A piece came whole, but its bytes are not the manifest's."""

    code = "piece_corrupt"

    def __init__(self, holder: str, file: str, index: int) -> None:
        super().__init__(f"holder {holder} served piece {index} of {file} with a wrong digest")
        self.holder = holder


class DigestMismatch(TransferFailed):
    """A whole file is not what upstream published."""

    code = "digest_mismatch"

    def __init__(
        self, file: str, expected: str, found: str, said: str = "was published",
        what: str = "check the gallery's entry, then retry",
    ) -> None:  # fmt: skip
        super().__init__(f"{file} has SHA-256 {found}, but {expected} {said}; the source serves another file: {what}")
        self._facts = (file, expected, found)

    def given(self) -> DigestMismatch:
        """Return the same where whoever asked for the file said what it must be."""
        return DigestMismatch(*self._facts, "was given", "check that SHA-256 and the address, then install it anew")


class Interrupted(StagecastError):
    """The work was asked to stop from outside; ``verb`` is ``cancel`` or ``pause``."""

    code = "interrupted"
    status = 409

    def __init__(self, verb: str) -> None:
        super().__init__(f"stopped by {verb}")
        self.verb = verb


class BusError(StagecastError):
    """The log cannot be reached or refused."""

    code = "bus_unavailable"
    status = 503


class BusUnavailable(BusError):
    """No connection to NATS at the moment."""

    def __init__(self, why: str, what: str = "what runs goes on, try again when NATS is back") -> None:
        super().__init__(f"the bus cannot be reached ({why}); {what}")
        self.why = why


class LogNotWritten(BusUnavailable):
    """The disk under the log of a process alone takes nothing more. What was said is lost, unless it is said again."""

    def __init__(self, path: str, why: str) -> None:
        StagecastError.__init__(
            self, f"the log {path} cannot be written ({why}); what runs goes on: free some space, it is tried again"
        )


class LogUnusable(BusError):
    """The log of a process alone cannot be opened; nothing was changed. ``what`` says what to do."""

    code = "log_unusable"

    def __init__(self, path: str, why: str, what: str) -> None:
        super().__init__(f"the log {path} cannot be used: {why}; {what}")


class BusUnsuitable(BusError):
    """There is a NATS server, but not one that can carry the log."""

    code = "bus_unsuitable"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"NATS at {url} cannot be used: {why}")


class NobodyListens(BusError):
    """A request met no process that answers its subject."""

    code = "nobody_listens"

    def __init__(self, subject: str) -> None:
        super().__init__(f"no process answers {subject}")


class CommandLost(BusError):
    """The bus went away under a command. ``may_be_done``: it was sent out before that."""

    def __init__(self, operation: str, verb: str, why: str, *, may_be_done: bool) -> None:
        unknown = "it was sent, and may have been done or not; see there once NATS is back"
        outcome = unknown if may_be_done else "nothing was done; try again once NATS is back"
        super().__init__(f"cannot {verb} {operation}: the bus cannot be reached ({why}); {outcome}")
        self.may_be_done = may_be_done


class AppendConflict(BusError):
    """A compare-and-set lost: the subject's last sequence is not the expected one."""

    code = "conflict"
    status = 409

    def __init__(self, subject: str, expected: int) -> None:
        super().__init__(f"{subject} is no longer at sequence {expected}")


class Fenced(StagecastError):
    """Another process, or another attempt, owns the operation now. Whoever gets this stops."""

    code = "fenced"
    status = 409

    def __init__(self, operation: str, attempt: int) -> None:
        super().__init__(f"{operation}: attempt {attempt} is no longer the current one")


class Busy(StagecastError):
    """Another process is at the same thing right now."""

    code = "busy"
    status = 409

    def __init__(self, what: str, by: str) -> None:
        super().__init__(f"{what} is being worked on by {by}; wait until that has ended, then retry")


class ReplicaBehind(StagecastError):
    """This replica has not folded the revision that the client has seen."""

    code = "replica_behind"
    status = 503

    def __init__(self, revision: str) -> None:
        super().__init__(f"this replica has not reached revision {revision} yet; ask again")


class BackendFailed(StagecastError):
    """A model server did not start, or ended."""

    code = "backend_failed"
    status = 502


class BackendUnreached(BackendFailed):
    """Nobody took the connection: nothing was sent, so another instance may be asked."""


class ModelLoading(StagecastError):
    """The model is on its way; the response says where it stands."""

    code = "model_loading"
    status = 503

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is loading; ask again after the time in Retry-After")
        self.model = model


class NotReady(StagecastError):
    """The process has not caught up with the log yet."""

    code = "not_ready"
    status = 503

    def __init__(self, what: str) -> None:
        super().__init__(f"not ready: {what}")
