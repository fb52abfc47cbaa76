"""What a hostile listing, redirect or repository tries, and where a token is seen."""

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer, git_sha1, running
from models_on_disk import REPO, SHARD

from iisft.models.hub.metadata import NAMES

CLI = Callable[..., Any]


@pytest.mark.parametrize(
    "path",
    [
        "../outside.json",
        "a/../../outside.json",
        "/tmp/outside.json",
        "..",
        "a//b.json",
        "./a.json",
        "a\\..\\b.json",
        ".iisft/manifest.json",
        ".IISFT/manifest.json",
        ".git/hooks/post-checkout",
        "a\nb.json",
        "a\x1b[31m.json",
        "",
    ],
)
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_path_that_leaves_the_folder_is_refused(
    hub: HubServer, iisft: CLI, target: Path, source: str, path: str
) -> None:
    hub.repos[REPO].extra.append(
        {"type": "file", "path": path, "size": 2, "oid": git_sha1(b"{}")}
        if source == "huggingface"
        else {"Type": "blob", "Path": path, "Size": 2}
    )
    result = iisft("download", REPO, "--source", source)
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith(
        f"error: the hub's listing names {path!r}, which is not a path inside a model folder\n"
    )
    assert [*target.parent.parent.rglob("*.json")] == []
    assert hub.bodies() == []


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": "x.json", "size": -1, "oid": "0" * 40},
        {"type": "file", "path": "x.json", "size": "9", "oid": "0" * 40},
        {"type": "file", "path": "x.json", "size": 9, "oid": "../../../../outside"},
        {"type": "file", "path": "config.json", "size": 9, "oid": "0" * 40},
        {"type": "file", "path": "x.safetensors", "size": 9, "oid": "0" * 40,
         "lfs": {"oid": "../" * 8, "size": 9, "pointerSize": 1}},
    ],
)  # fmt: skip
def test_a_listing_that_lies_otherwise_is_refused(
    hub: HubServer, iisft: CLI, entry: dict[str, Any]
) -> None:
    hub.repos[REPO].extra.append(entry)
    result = iisft("download", REPO, "--source", "huggingface", "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (5, "listing-unsafe")


def test_a_token_goes_to_its_own_host_alone(
    hub: HubServer, iisft: CLI, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = iisft("download", REPO, "--source", "huggingface", "--json")
    assert result.code == 0
    own = {one.path: one for one in hub.seen if one.host == f"127.0.0.1:{hub.port}"}
    foreign = [one for one in hub.seen if one.host == f"localhost:{hub.port}"]
    assert own and all(
        one.headers.get("authorization", one.headers.get("Authorization")) for one in own.values()
    )
    assert foreign and not any("hf_secret" in str(one.headers) for one in foreign)
    everywhere = result.out + result.err + (target / ".iisft" / "manifest.json").read_text()
    assert "hf_secret" not in everywhere and "secret-signature" not in everywhere


def test_modelscopes_token_is_not_sent_on_a_redirect(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
    place = f"{hub.elsewhere}/cdn/{REPO}/x/{SHARD}"
    hub.faults.append(Fault(SHARD, redirect=place, times=1))
    assert iisft("download", REPO, "--source", "modelscope").code == 0
    (own,) = [one for one in hub.bodies(SHARD) if "FilePath" in one.path]
    (foreign,) = [one for one in hub.bodies(SHARD) if one.path.startswith("/cdn/")]
    assert "ms_secret" in own.headers["Authorization"] and "ms_secret" in own.headers["Cookie"]
    assert "ms_secret" not in str(foreign.headers)


def test_a_password_in_an_endpoint_is_never_shown(
    hub: HubServer, iisft: CLI, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//me:pass-word@"))
    result = iisft("download", REPO, "--source", "huggingface")
    assert result.code == 0, result.err
    assert (
        "pass-word"
        not in result.out + result.err + (target / ".iisft" / "manifest.json").read_text()
    )
    monkeypatch.setenv("HF_ENDPOINT", "http://me:pass-word@127.0.0.1:1")
    result = iisft("download", REPO, "--source", "huggingface")
    assert (result.code, "pass-word" in result.err) == (5, False)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_no_web_address_is_refused(hub: HubServer, iisft: CLI, place: str) -> None:
    hub.faults.append(Fault(SHARD, redirect=place))
    result = iisft("download", REPO, "--source", "modelscope")
    assert (result.code, "which is not https" in result.err) == (5, True)


def test_redirects_in_a_circle_end(hub: HubServer, iisft: CLI) -> None:
    hub.faults.append(Fault(SHARD, redirect=f"{hub.url}/cdn/{REPO}/x/{SHARD}"))
    result = iisft("download", REPO, "--source", "modelscope")
    assert (result.code, "redirects more than 5 times" in result.err) == (5, True)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its self-signed certificate for 127.0.0.1 and localhost, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub")])
    now = datetime.now(UTC)
    hosts = [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]
    signed = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "证书 ca.pem"
    file.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_the_environments_certificates_are_trusted_by_all_parts(
    hub: HubServer, certificate: Path, target: Path, source: str
) -> None:
    """In a process of its own: the variables are made to agree for the rest of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running(tls=context) as secure:
        secure.repos = hub.repos
        env = {**os.environ, "HF_ENDPOINT": secure.url, "MODELSCOPE_ENDPOINT": secure.url}
        # its client waits even for certificates
        env["MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS"] = "1"
        results = {}
        for variable in ("NOTHING", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            argv = [
                sys.executable,
                "-m",
                "iisft",
                "download",
                REPO,
                "--source",
                source,
                "--to",
                str(target / variable),
            ]
            done = subprocess.run(
                argv,
                env={**env, variable: str(certificate)},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            results[variable] = done.returncode, done.stderr.splitlines()[0]
    assert results == {
        "NOTHING": (
            5,
            f"error: the certificate of {NAMES[source]} ({secure.url}) can't be verified",
        ),
        "SSL_CERT_FILE": (0, "downloading 9 files, 801 kB"),
        "REQUESTS_CA_BUNDLE": (0, "downloading 9 files, 801 kB"),
    }


def test_an_http_proxy_is_used_and_the_hub_can_be_left_out(
    hub: HubServer, iisft: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", hub.url)
    hub.repos[REPO].files = {
        name: text for name, text in hub.repos[REPO].files.items() if len(text) < 1000
    }
    result = iisft("download", REPO, "--source", "huggingface")
    assert result.code == 0, result.err
    assert {one.host for one in hub.seen} == {"hub.invalid"}
    with running() as direct:
        direct.repos = hub.repos
        monkeypatch.setenv("HF_ENDPOINT", direct.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert iisft("download", REPO, "--source", "huggingface").code == 0
        assert {one.host for one in direct.seen} == {f"127.0.0.1:{direct.port}"}
