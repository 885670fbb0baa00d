"""The parts of the mini-internet that need no network: plan, names, DNS answers, certificates."""

import datetime
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.errors import UsageError
from gfwemu.netlab.internet.authority import open_authority
from gfwemu.netlab.internet.certificates import Certificates
from gfwemu.netlab.internet.dns import Answerer, check_https_records
from gfwemu.netlab.internet.names import Names
from gfwemu.netlab.internet.plan import CertificateKind, Echo, OpenVpn, Plan, Resolver, Site, load_plan
from gfwemu.netlab.internet.requests import host_of

MANY = ("192.0.2.1", *(f"198.51.100.{n}" for n in range(1, 201)))
PLAN = Plan(
    directory="lab",
    sites=(
        Site(names=("www.allowed.example",), v4=("192.0.2.1",), v6=("2001:db8::1",)),
        Site(names=("many.example",), v4=MANY),
        Site(names=("exact.absent.example",), v4=("192.0.2.3",)),
        Site(names=("*.wild.example", "wild.example"), v4=("192.0.2.4",), certificate="expired"),
    ),
    resolvers=(Resolver(names=("dns.example",), v4=("192.0.2.53",)),),
    absent=("absent.example",),
    catch_all=Site(names=(), v4=("192.0.2.9",)),
    services=(Echo(name="echo", address="192.0.2.1"), OpenVpn(name="vpn", address="203.0.113.1", variant="tls-crypt")),
)
NAMES = Names.of(PLAN)
ANSWERER = Answerer(NAMES)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json())
    assert load_plan(path) == PLAN


def test_a_plan_lists_each_address_that_something_listens_on_once() -> None:
    plan = replace(PLAN, sites=(*PLAN.sites[:1], Site(names=("down.example",), v4=("192.0.2.66",), listen=())))
    assert plan.addresses == ("192.0.2.1", "2001:db8::1", "192.0.2.9", "192.0.2.53", "203.0.113.1")


def test_everything_wrong_with_a_plan_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(
        '{"directory": "x", "sites": [{"names": ["a"], "v4": ["::1"], "port": 1}], "services": [{"kind": "vpn"}]}'
    )
    with pytest.raises(UsageError) as caught:
        load_plan(path)
    said = str(caught.value)
    assert "sites.0.v4.0: Value error, ::1 is not an IPv4 address" in said
    assert "sites.0.port: Unexpected keyword argument" in said
    assert "services.0: Input tag 'vpn' found using 'kind' does not match any of the expected tags" in said
    with pytest.raises(UsageError, match=r"cannot read the plan .*: No such file or directory"):
        load_plan(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("www.allowed.example", PLAN.sites[0]),
        ("dns.example", PLAN.resolvers[0]),
        ("a.b.wild.example", PLAN.sites[3]),
        ("wild.example", PLAN.sites[3]),
        ("exact.absent.example", PLAN.sites[2]),
        ("absent.example", None),
        ("other.absent.example", None),
        ("invalid", None),
        ("a.invalid", None),
        ("notabsent.example", PLAN.catch_all),
        ("", PLAN.catch_all),
    ],
)
def test_lookup(name: str, owner: Site | Resolver | None) -> None:
    assert NAMES.lookup(name) == owner


def test_a_resident_is_chosen_by_name_and_else_the_first() -> None:
    assert NAMES.resident("192.0.2.4", "a.wild.example") == PLAN.sites[3]
    assert NAMES.resident("192.0.2.1", "many.example") == PLAN.sites[1]
    assert NAMES.resident("192.0.2.1", "elsewhere.example") == PLAN.sites[0]
    assert NAMES.resident("203.0.113.99", "www.allowed.example") is None


def test_a_long_answer_is_truncated_on_udp_only() -> None:
    plain = bytes(DNSRecord.question("many.example").pack())
    edns = plain[:11] + b"\x01" + plain[12:] + b"\0\0\x29\xff\xff\0\0\0\0\0\0"
    for query, limit in ((plain, 512), (edns, 1232)):
        short = ANSWERER.answer(query, udp=True)
        assert short is not None
        assert len(short) <= limit
        assert DNSRecord.parse(short).header.tc == 1
        assert DNSRecord.parse(short).q.qname == "many.example"
    whole = ANSWERER.answer(plain, udp=False)
    assert whole is not None
    assert {str(record.rdata) for record in DNSRecord.parse(whole).rr} == set(MANY)


@given(
    st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + tail),
    st.booleans(),
)
def test_any_bytes_get_a_readable_answer_or_none(query: bytes, udp: bool) -> None:
    answer = ANSWERER.answer(query, udp=udp)
    if answer is None:
        assert len(query) < 12 or query[2] & 0x80
    else:
        assert answer[:2] == query[:2]
        assert DNSRecord.parse(answer).header.qr == 1


def test_an_unreadable_https_record_names_its_site() -> None:
    check_https_records([Site(names=("a.example",), https_records=("1 . alpn=h3 ipv4hint=192.0.2.1", "0 b.example"))])
    with pytest.raises(UsageError, match=r"the HTTPS record '1 . nope=1' of a.example cannot be read"):
        check_https_records([Site(names=("a.example",), https_records=("1 . nope=1",))])


def test_an_https_record_may_carry_ech() -> None:
    site = Site(names=("a.example",), https_records=("1 . alpn=h2 ech=AAEC",))
    answerer = Answerer(Names.of(Plan(directory="lab", sites=(site,))))
    answer = answerer.answer(bytes(DNSRecord.question("a.example", "HTTPS").pack()), udp=True)
    assert answer is not None
    # RFC 9460 section 2.2: parameter 5, three bytes.
    assert b"\x00\x05\x00\x03\x00\x01\x02" in answer


@pytest.mark.parametrize(
    ("field", "host"),
    [
        (b"Www.Example", "www.example"),
        (b"www.example:8080", "www.example"),
        (b"www.example.", "www.example"),
        (b"192.0.2.1:80", ""),
        (b"[2001:db8::1]:443", ""),
        (b"", ""),
        (b"\xff\xfe", "\xff\xfe"),
    ],
)
def test_host_of(field: bytes, host: str) -> None:
    assert host_of([(b"accept", b"*/*"), (b"host", field)]) == host


def test_host_is_empty_where_it_is_missing() -> None:
    assert host_of([]) == ""


@pytest.mark.parametrize(
    ("kind", "trusted", "current", "named"),
    [
        ("trusted", True, True, True),
        ("untrusted", False, True, True),
        ("expired", True, False, True),
        ("wrong-name", True, True, False),
    ],
)
def test_each_kind_of_certificate_has_one_fault(
    tmp_path: Path, kind: CertificateKind, trusted: bool, current: bool, named: bool
) -> None:
    authority = open_authority(tmp_path)
    leaf = x509.load_pem_x509_certificate(authority.leaf(kind, "www.a.example").cert_chain_pems[0].bytes())
    lab = x509.load_pem_x509_certificate((tmp_path / "authority.pem").read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert (leaf.issuer == lab.subject) is trusted
    assert (leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc) is current
    assert ("www.a.example" in names) is named
    if trusted:
        leaf.verify_directly_issued_by(lab)


def names_of(leaf: trustme.LeafCert) -> list[str]:
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in extension]


@pytest.mark.parametrize(
    ("address", "name", "identities"),
    [
        ("192.0.2.1", "www.allowed.example", ["www.allowed.example"]),
        ("192.0.2.1", "", ["www.allowed.example", "192.0.2.1"]),
        ("192.0.2.1", "elsewhere.example", ["www.allowed.example"]),
        ("192.0.2.4", "a.wild.example", ["a.wild.example"]),
        ("192.0.2.9", "any.example", ["any.example"]),
        ("192.0.2.9", "", ["192.0.2.9"]),
        ("192.0.2.9", "not a name", ["192.0.2.9"]),
        ("192.0.2.53", "", ["dns.example", "192.0.2.53"]),
        ("203.0.113.99", "", ["203.0.113.99"]),
    ],
)
def test_which_certificate_an_address_shows(tmp_path: Path, address: str, name: str, identities: list[str]) -> None:
    assert names_of(Certificates(NAMES, open_authority(tmp_path)).leaf(address, name)) == identities


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfwemu.netlab.internet.authority.KEPT_CERTIFICATES", 5)
    monkeypatch.setattr("gfwemu.netlab.internet.certificates.KEPT_CERTIFICATES", 3)
    certificates = Certificates(NAMES, open_authority(tmp_path))
    contexts = [certificates.context("192.0.2.9", f"{n}.example", ()) for n in range(9)]
    assert all(isinstance(context, ssl.SSLContext) for context in contexts)
    assert certificates.context("192.0.2.9", "8.example", ()) is contexts[8]
    assert certificates.context("192.0.2.9", "0.example", ()) is not contexts[0]
    assert len(certificates._contexts) == 3
    assert len(certificates.authority._kept) == 5
