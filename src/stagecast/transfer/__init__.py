"""Moving files between processes: `FileServer` gives, `pull` gets."""

from stagecast.transfer.ledger import Pulled
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.pull import pull
from stagecast.transfer.serve import FileServer
from stagecast.transfer.source import Holder, fetch_manifest
from stagecast.transfer.tls import client_tls, server_tls
from stagecast.transfer.waits import Waits

__all__ = [
    "FileServer", "Holder", "Pulled", "RateLimit", "Waits", "client_tls", "fetch_manifest", "pull", "server_tls",
]  # fmt: skip
