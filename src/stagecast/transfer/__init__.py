"""Moving files between processes: `FileServer` gives, `pull` gets."""

from stagecast.pieces import Holder
from stagecast.transfer.limit import RateLimit
from stagecast.transfer.pull import pull
from stagecast.transfer.report import Pulled
from stagecast.transfer.serve import FileServer
from stagecast.transfer.source import fetch_manifest
from stagecast.transfer.tls import client_tls, server_tls
from stagecast.transfer.waits import Waits

__all__ = [
    "FileServer", "Holder", "Pulled", "RateLimit", "Waits", "client_tls", "fetch_manifest", "pull", "server_tls",
]  # fmt: skip
