from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from stagecast.errors import BadInput, HoldersFailed
from stagecast.store import Store
from stagecast.transfer import FileServer, Holder, client_tls, server_tls
from tests.sample import lay_out, manifest_of
from tests.transfer.test_pull import CONTENTS, MANIFEST, SIZE, Caller, assert_whole, holder

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is missing")

HINT = "; give its authority with --files-authority"


class Pair(NamedTuple):
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(tmp_path_factory.mktemp("pair"), "IP:127.0.0.1")


def made(folder: Path, name: str) -> Pair:
    pair = Pair(folder / "certificate.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2"]
    command += ["-subj", "/CN=rack", "-addext", f"subjectAltName={name}", "-out", pair.certificate, "-keyout", pair.key]
    subprocess.run(command, check=True, capture_output=True)
    return pair


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "data")


@pytest.fixture
def server(tmp_path: Path, pair: Pair) -> Iterator[FileServer]:
    lay_out(tmp_path / "good" / "tiny", CONTENTS)
    upstream = Store(tmp_path / "good", tmp_path / "good-data")
    upstream.record(MANIFEST)
    with FileServer(upstream, "127.0.0.1", token="secret", tls=server_tls(*pair)) as server:
        yield server


def test_a_model_moves_over_tls(store: Store, server: FileServer, pair: Pair) -> None:
    assert server.url.startswith("https://")
    with store.partial(MANIFEST) as partial:
        pulled = Caller(partial).pull(holder(server), token="secret", tls=client_tls(pair.certificate))
        assert pulled.bytes_received == server.bytes_sent == SIZE
        assert_whole(partial)


def test_pieces_larger_than_what_is_held_in_memory(store: Store, tmp_path: Path, pair: Pair) -> None:
    contents = {"big": bytes(range(256)) * 20_000}
    manifest = manifest_of("big", contents, piece_size=4 << 20)
    lay_out(tmp_path / "upstream" / "big", contents)
    upstream = Store(tmp_path / "upstream", tmp_path / "upstream-data")
    upstream.record(manifest)
    with FileServer(upstream, "127.0.0.1", tls=server_tls(*pair)) as server, store.partial(manifest) as partial:
        Caller(partial).pull(holder(server), tls=client_tls(pair.certificate))
        assert_whole(partial, contents)


@pytest.mark.parametrize("authority", [True, False])
def test_a_certificate_that_nobody_vouches_for_is_refused(
    store: Store, server: FileServer, tmp_path: Path, *, authority: bool
) -> None:
    other = client_tls(made(tmp_path, "IP:127.0.0.1").certificate) if authority else client_tls(None)
    with store.partial(MANIFEST) as partial:
        with pytest.raises(HoldersFailed, match=rf"good: .*(self-signed|unable to get local issuer|signature).*{HINT}"):
            Caller(partial).pull(holder(server), token="secret", tls=other, patience=0.2)
        assert partial.verified_bytes == 0


def test_a_certificate_for_another_host_is_refused(store: Store, tmp_path: Path) -> None:
    other = made(tmp_path, "DNS:elsewhere.example")
    with (
        FileServer(store, "127.0.0.1", tls=server_tls(*other)) as server,
        store.partial(MANIFEST) as partial,
        pytest.raises(HoldersFailed, match="good: IP address mismatch") as caught,
    ):
        Caller(partial).pull(holder(server), tls=client_tls(other.certificate), patience=0.2)
    assert HINT not in caught.value.message, "another authority would not help"


def test_who_speaks_no_tls_gets_nothing(store: Store, server: FileServer) -> None:
    plain = Holder("good", server.url.replace("https", "http"))
    with store.partial(MANIFEST) as partial, pytest.raises(HoldersFailed, match="good: "):
        Caller(partial).pull(plain, token="secret", patience=0.2)
    assert server.bytes_sent == 0


def test_tls_to_who_speaks_none_is_refused(store: Store, pair: Pair) -> None:
    with FileServer(store, "127.0.0.1") as server, store.partial(MANIFEST) as partial:
        sealed = Holder("good", server.url.replace("http", "https"))
        with pytest.raises(HoldersFailed, match="good: "):
            Caller(partial).pull(sealed, tls=client_tls(pair.certificate), patience=0.2, stall=0.5)


def test_without_a_certificate_it_is_plain_http() -> None:
    assert server_tls(None, None) is None
    assert client_tls(None) is None


def test_the_oldest_that_is_spoken(pair: Pair) -> None:
    served, believed = server_tls(*pair), client_tls(pair.certificate)
    assert served is not None
    assert believed is not None
    assert {served.minimum_version, believed.minimum_version} == {ssl.TLSVersion.TLSv1_3}
    assert believed.check_hostname


def test_files_that_cannot_be_used_are_named(pair: Pair, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    with pytest.raises(BadInput, match=r"--files-certificate .*nothing\.pem cannot be used: No such file"):
        server_tls(nothing, None)
    with pytest.raises(BadInput, match=r"--files-certificate .* cannot be used"):
        server_tls(pair.certificate, None)
    with pytest.raises(BadInput, match="--files-key needs --files-certificate"):
        server_tls(None, pair.key)
    with pytest.raises(BadInput, match=r"--files-authority .*nothing\.pem cannot be used: No such file"):
        client_tls(nothing)
