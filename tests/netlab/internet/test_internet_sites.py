"""The sites, as curl and the HTTP/3 probe see them."""

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.needs("curl", "nsenter")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http1.1", "https://www.allowed.example/"], "hello from www.allowed.example over http/1.1"),
        (["--http2", "https://www.allowed.example/"], "hello from www.allowed.example over h2"),
        (["-6", "--http2", "https://www.allowed.example/any/path"], "hello from www.allowed.example over h2"),
        (["http://www.allowed.example/"], "hello from www.allowed.example over http/1.1"),
        (["--http2-prior-knowledge", "http://www.allowed.example/"], "hello from www.allowed.example over h2"),
        (["https://WWW.Allowed.Example/"], "hello from www.allowed.example over h2"),
        (["https://any.name.test/"], "hello from any.name.test over h2"),
        (["https://www.blocked.example/"], "hello from www.blocked.example over h2"),
        (["https://a.wild.example/"], "hello from a.wild.example over h2"),
        (["https://xn--bcher-kva.example/"], "hello from xn--bcher-kva.example over h2"),
        (["https://192.0.2.1/"], "hello from www.allowed.example over h2"),
        (["https://[2001:db8::9]/"], "hello from 2001:db8::9 over h2"),
        (["http://high-ports.example:8080/"], "hello from high-ports.example over http/1.1"),
        (["https://high-ports.example:8443/"], "hello from high-ports.example over h2"),
    ],
)
def test_the_answer_proves_who_gave_it(sites: Any, arguments: list[str], said: str) -> None:
    done = sites.curl(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, said + "\n", "")


def test_a_host_that_lives_elsewhere_gets_the_residents_own_page(sites: Any) -> None:
    """So that DNS hijacking shows in the text."""
    done = sites.curl("--resolve", "www.other.example:80:192.0.2.1", "http://www.other.example/")
    assert done.stdout == "hello from www.allowed.example over http/1.1\n"


def test_a_name_that_lives_elsewhere_gets_the_residents_certificate(sites: Any) -> None:
    done = sites.curl("--resolve", "www.other.example:443:192.0.2.1", "https://www.other.example/")
    assert done.returncode == 60
    assert "no alternative certificate subject name matches" in done.stderr


def test_info_tells_client_protocol_sni_and_tls_version(sites: Any) -> None:
    done = sites.curl("--tls-max", "1.2", "--local-port", "4567", "https://www.allowed.example/info?x=1")
    facts = json.loads(done.stdout)
    assert facts.pop("cipher").startswith("ECDHE-ECDSA-")
    assert facts == {
        "name": "www.allowed.example",
        "host": "www.allowed.example",
        "protocol": "h2",
        "scheme": "https",
        "method": "GET",
        "path": "/info",
        "client": {"address": facts["client"]["address"], "port": 4567},
        "server": {"address": facts["server"]["address"]},
        "sni": "www.allowed.example",
        "tls": "TLSv1.2",
    }
    assert facts["server"]["address"] in ("192.0.2.1", "2001:db8::1")


def test_http3_answers_on_the_same_name_with_its_own_certificate(sites: Any) -> None:
    found = sites.probe("h3", "https://www.allowed.example/info")
    facts = json.loads(found["text"])
    assert (found["outcome"], found["protocol"], found["status"]) == ("ok", "h3", 200)
    assert (facts["sni"], facts["protocol"], facts["tls"]) == ("www.allowed.example", "h3", "TLSv1.3")
    assert sites.probe("h3", "https://any.other.test/")["text"] == "hello from any.other.test over h3\n"


@pytest.mark.needs("gtlsclient")
def test_a_foreign_quic_client_gets_its_page(sites: Any) -> None:
    place = sites.directory / "download"
    place.mkdir()
    url = "https://www.allowed.example/bytes/300000"
    sites.run("gtlsclient", "--exit-on-all-streams-close", "-q", f"--download={place}", "192.0.2.1", "443", url)
    assert (place / "300000").read_bytes() == (bytes(range(256)) * 1172)[:300000]


def test_alt_svc_offers_http3_where_it_is_served(sites: Any) -> None:
    assert 'alt-svc: h3=":443"; ma=60' in sites.curl("-I", "https://www.allowed.example/").stdout
    assert "alt-svc" not in sites.curl("-I", "http://www.allowed.example/").stdout


def test_connections_are_kept_alive(sites: Any) -> None:
    done = sites.curl("--http1.1", "-w", "%{num_connects} ", *["https://www.allowed.example/status/204"] * 3)
    assert done.stdout == "1 0 0 "


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_many_bytes_are_streamed_quickly(sites: Any, version: str) -> None:
    done = sites.curl(
        version,
        "-o",
        "/dev/null",
        "-w",
        "%{size_download} %{speed_download}",
        "https://www.allowed.example/bytes/50000000",
    )
    size, speed = done.stdout.split()
    assert int(size) == 50_000_000
    assert float(speed) * 8 > 100e6


def test_http3_bytes_are_streamed(sites: Any) -> None:
    found = sites.probe("h3", "https://www.allowed.example/bytes/3000000")
    assert (found["outcome"], found["received"]) == ("ok", 3_000_000)


def test_upload_counts_what_came(sites: Any) -> None:
    done = sites.curl("--data-binary", "@-", "https://www.allowed.example/upload")
    assert done.stdout == "0\n"
    done = sites.run(
        "curl",
        "-sS",
        "--cacert",
        str(sites.authority),
        "--data-binary",
        "@-",
        "https://www.allowed.example/upload",
        input="x" * 200_000,
    )
    assert done.stdout == "200000\n"


@pytest.mark.parametrize(
    ("url", "code", "status"),
    [
        ("http://captcha.example/", 0, "403"),
        ("http://blockpage.example/", 0, "451"),
        ("https://www.allowed.example/status/503", 0, "503"),
        ("https://www.allowed.example/status/99", 0, "400"),
        ("http://gone.example/", 0, "410"),
        ("http://closes.example/", 52, "000"),
        ("http://www.allowed.example/close", 52, "000"),
        ("http://resets.example/", 56, "000"),
        ("http://www.allowed.example/reset", 56, "000"),
        ("https://tls-close.example/", 35, "000"),
        ("https://tls-reset.example/", 35, "000"),
        ("https://expired.example/", 60, "000"),
        ("https://untrusted.example/", 60, "000"),
        ("https://wrong-name.test/", 60, "000"),
        ("http://nobody-listens.example/", 7, "000"),
        ("http://no-address.example/", 6, "000"),
        ("http://absent.example/", 6, "000"),
        ("http://below.absent.example/", 6, "000"),
        ("http://www.blocked.invalid/", 6, "000"),
        ("http://moved.example/", 0, "200"),
        ("http://broken.example/", 3, "302"),
        ("http://www.allowed.example/redirect/5", 0, "200"),
        ("http://www.allowed.example/redirect/11", 47, "302"),
        ("http://www.allowed.example/loop", 47, "302"),
        ("http://www.allowed.example/redirect?to=http://nobody-listens.example/", 7, "302"),
        ("http://www.allowed.example/redirect?to=http://closes.example/", 52, "302"),
        ("http://www.allowed.example/redirect?to=http://x.invalid/", 6, "302"),
    ],
)
def test_every_behaviour_has_curls_exit_code(sites: Any, url: str, code: int, status: str) -> None:
    done = sites.curl("-L", "--max-redirs", "10", "-o", "/dev/null", "-w", "%{http_code}", url)
    assert (done.returncode, done.stdout) == (code, status), done.stderr


@pytest.mark.parametrize(
    ("url"), ["http://stalls.example/", "http://www.allowed.example/stall", "http://slow.example/"]
)
def test_silence_and_slowness_run_into_curls_timeout(sites: Any, url: str) -> None:
    assert sites.curl("--max-time", "0.7", "-o", "/dev/null", url).returncode == 28


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("expired.example", "certificate has expired"),
        ("untrusted.example", "unable to get local issuer certificate"),
        ("wrong-name.test", "no alternative certificate subject name matches target host name"),
    ],
)
def test_false_certificates_are_false_for_their_own_reason(sites: Any, name: str, reason: str) -> None:
    done = sites.curl(f"https://{name}/")
    assert done.returncode == 60
    assert reason in done.stderr
    assert sites.curl("-k", f"https://{name}/").stdout == f"hello from {name} over h2\n"
    assert sites.probe("h3", f"https://{name}/")["outcome"] == "failed"


def test_blockpage_and_captcha_say_what_they_are(sites: Any) -> None:
    page = sites.curl("--resolve", "www.news.example:80:192.0.2.3", "http://www.news.example/any").stdout
    assert "451 Unavailable For Legal Reasons" in page
    assert "Access to www.news.example has been blocked" in page
    assert "confirm that you are human" in sites.curl("http://captcha.example/").stdout


def test_a_host_header_cannot_write_into_the_blockpage(sites: Any) -> None:
    page = sites.curl("-H", "Host: <script>.example", "http://192.0.2.3/").stdout
    assert "&lt;script&gt;.example" in page
    assert "<script>" not in page


def test_the_bundle_holds_the_lab_authority_and_the_systems(sites: Any) -> None:
    bundle = sites.lab / "ca-bundle.pem"
    assert bundle.read_text().endswith(sites.authority.read_text())
    done = sites.run("curl", "-sS", "--cacert", str(bundle), "https://www.allowed.example/")
    assert done.stdout == "hello from www.allowed.example over h2\n"


@pytest.mark.needs("openssl")
def test_openssl_sees_the_certificate_of_the_name_that_it_asks_for(sites: Any) -> None:
    arguments = ["-connect", "192.0.2.9:443", "-CAfile", str(sites.authority), "-verify_return_error", "-alpn", "h2"]
    named = sites.run(
        "openssl", "s_client", *arguments, "-servername", "www.one.test", "-verify_hostname", "www.one.test", input=""
    )
    assert "Verify return code: 0 (ok)" in named.stdout
    assert "ALPN protocol: h2" in named.stdout
    unnamed = sites.run("openssl", "s_client", *arguments, "-noservername", "-verify_ip", "192.0.2.9", input="")
    assert "Verify return code: 0 (ok)" in unnamed.stdout


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("name", ["a_b.test", "-.test", "x" * 63 + ".test", "1.2.3", "*.test", "a..b", "["])
def test_odd_server_names_get_a_certificate(sites: Any, name: str) -> None:
    done = sites.run("openssl", "s_client", "-connect", "192.0.2.9:443", "-servername", name, input="")
    assert "subject=O = trustme" in done.stdout, done.stderr


def test_a_server_name_that_is_not_ascii_ends_its_own_connection_only(sites: Any) -> None:
    done = sites.run("openssl", "s_client", "-connect", "192.0.2.9:443", "-servername", "\u00fc", input="")
    assert "no peer certificate available" in done.stdout
    assert (sites.directory / "stderr").read_text() == ""


def test_a_client_that_leaves_does_not_keep_the_server_busy(sites: Any) -> None:
    assert (
        sites.curl("--max-time", "0.3", "-o", "/dev/null", "http://www.allowed.example/bytes/99999999999999").returncode
        == 28
    )
    assert sites.curl("http://www.allowed.example/").stdout == "hello from www.allowed.example over http/1.1\n"
    assert (sites.directory / "stderr").read_text() == ""
