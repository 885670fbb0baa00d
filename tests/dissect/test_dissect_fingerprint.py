"""JA3 and JA4 against their authors' published values."""

from __future__ import annotations

import pytest
from hello_kit import (
    alpn,
    client_hello,
    groups,
    point_formats,
    server_name,
    signature_algorithms,
    supported_versions,
)

from gfwemu.dissect.client_hello import read_client_hello
from gfwemu.dissect.fingerprint import cipher_text, ja3, ja3_text, ja4

# FoxIO technical_details/JA4.md, the worked example.
FOXIO_CIPHERS = (
    *(0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8),
    *(0xC013, 0xC014, 0x009C, 0x009D, 0x002F, 0x0035),
)
FOXIO_EXTENSIONS = (
    *(0x001B, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002D, 0x000D, 0x0005, 0x0023),
    *(0x0012, 0x002B, 0xFF01, 0x000B, 0x000A, 0x0015),
)
FOXIO_ALGORITHMS = (0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)

FILLED = dict(
    [
        server_name(b"www.example"),
        alpn(b"h2", b"http/1.1"),
        supported_versions(0x0A0A, 0x0304, 0x0303),
        signature_algorithms(0x3A3A, *FOXIO_ALGORITHMS),
        groups(0x1A1A, 0x001D),
        point_formats(0),
    ]
)


def foxio_hello(*, algorithms: bool = True, grease: bool = True) -> bytes:
    body = dict(FILLED)
    if not algorithms:
        body[13] = signature_algorithms()[1]
    extensions = [(kind, body.get(kind, b"")) for kind in FOXIO_EXTENSIONS]
    ciphers = FOXIO_CIPHERS
    if grease:
        extensions = [(0x2A2A, b""), *extensions, (0xFAFA, b"\0")]
        ciphers = (0xBABA, *ciphers)
    return client_hello(extensions, ciphers=ciphers)


def test_ja4_of_the_authors_example() -> None:
    assert ja4(read_client_hello(foxio_hello()), "t") == "t13d1516h2_8daaf6152771_e5627efa2ab1"
    assert ja4(read_client_hello(foxio_hello(grease=False)), "q") == "q13d1516h2_8daaf6152771_e5627efa2ab1"


def test_ja4_without_signature_algorithms_has_no_underscore_in_its_hash() -> None:
    assert ja4(read_client_hello(foxio_hello(algorithms=False)), "t").endswith("_6d807ffa2a79")


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        (b"h2", "h2"),
        (b"http/1.1", "h1"),
        (b"x", "xx"),
        (b"\xab", "ab"),
        (b"\x30\xab", "3b"),
        (b"\x30\x31\xab\xcd", "3d"),
        (b"\x30\xab\xcd\x31", "01"),
        (b"", "00"),
    ],
)
def test_ja4_alpn_letters(name: bytes, letters: str) -> None:
    # FoxIO technical_details/JA4.md, "ALPN Extension Value".
    assert ja4(read_client_hello(client_hello([alpn(name)])), "t")[8:10] == letters


@pytest.mark.parametrize(
    ("legacy", "offered", "text"),
    [
        (0x0303, (0x0304, 0x0303), "13"),
        (0x0303, (0x0303, 0x4A4A, 0x0304), "13"),
        (0x0303, (), "12"),
        (0x0302, (), "11"),
        (0x0301, (), "10"),
        (0x0300, (), "s3"),
        (0x0305, (), "00"),
        (0x0303, (0x0A0A,), "12"),
    ],
)
def test_ja4_version(legacy: int, offered: tuple[int, ...], text: str) -> None:
    extensions = [supported_versions(*offered)] if offered else []
    assert ja4(read_client_hello(client_hello(extensions, version=legacy)), "t")[1:3] == text


def test_ja4_of_a_hello_with_nothing_in_it() -> None:
    empty = read_client_hello(client_hello(None, ciphers=()))
    assert ja4(empty, "t") == "t12i000000_000000000000_000000000000"


def test_ja4_counts_stop_at_99() -> None:
    hello = client_hello([(1000 + n, b"") for n in range(120)], ciphers=range(200, 320))
    assert ja4(read_client_hello(hello), "t").startswith("t12i999900_")


def test_ja3_of_the_authors_examples() -> None:
    # Salesforce's README: with and without extensions.
    first = client_hello(
        [server_name(b"www.example"), groups(23, 24, 25), point_formats(0)],
        version=0x0301,
        ciphers=(47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4),
    )
    assert ja3_text(read_client_hello(first)) == "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0"
    assert ja3(read_client_hello(first)) == "ada70206e40642a3e4461f35503241d5"
    second = client_hello(None, version=0x0301, ciphers=(4, 5, 10, 9, 100, 98, 3, 6, 19, 18, 99))
    assert ja3_text(read_client_hello(second)) == "769,4-5-10-9-100-98-3-6-19-18-99,,,"
    assert ja3(read_client_hello(second)) == "de350869b8c85de67a350c8d186f11e6"


def test_cipher_suites_are_hexadecimal_and_without_grease() -> None:
    assert cipher_text(read_client_hello(client_hello(ciphers=(0x0A0A, 0xC02B, 0x0005, 0x00FF)))) == "c02b-0005-00ff"
    assert cipher_text(read_client_hello(client_hello(ciphers=()))) == ""


def test_ja3_leaves_grease_out() -> None:
    assert ja3(read_client_hello(foxio_hello())) == ja3(read_client_hello(foxio_hello(grease=False)))
