"""Whom the two ends of a transfer believe. What is not set up for TLS is plain HTTP."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from stagecast.errors import BadInput

_NOBODY_VOUCHES: Final = frozenset({7, 18, 19, 20, 21})
"""OpenSSL's codes (X509_V_ERR_*) for a certificate that no authority signed which is believed here."""


def server_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return what a `FileServer` shows its clients; None without a certificate, which is plain HTTP.

    ``certificate`` is a PEM file, with what leads to its authority behind it; ``key`` may lie in the same file.

    Raises:
        BadInput: a file cannot be read, or the two do not belong together.
    """
    if certificate is None:
        if key is not None:
            raise BadInput("--files-key needs --files-certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise BadInput(f"--files-certificate {certificate} cannot be used: {_why(error)}") from None
    return context


def client_tls(authority: Path | None) -> ssl.SSLContext | None:
    """Return what believes certificates of that authority, a PEM file, and no others; None for the system's.

    Raises:
        BadInput: the file cannot be read.
    """
    if authority is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise BadInput(f"--files-authority {authority} cannot be used: {_why(error)}") from None
    return context


def refusal(error: ssl.SSLCertVerificationError) -> str:
    """Return why a holder's certificate is not believed, and what to do where that can be said."""
    hint = "; give its authority with --files-authority" if error.verify_code in _NOBODY_VOUCHES else ""
    return f"{error.verify_message}{hint}"


def _why(error: Exception) -> str:
    return getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error)
