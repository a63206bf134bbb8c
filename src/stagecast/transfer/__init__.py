"""Moving files between processes: `FileServer` gives, `pull` gets."""

from stagecast.transfer.ledger import Pulled
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.pull import pull
from stagecast.transfer.serve import FileServer
from stagecast.transfer.source import Holder, fetch_manifest
from stagecast.transfer.waits import Waits

__all__ = ["FileServer", "Holder", "Pulled", "RateLimit", "Waits", "fetch_manifest", "pull"]
