"""Domain names on the wire (RFC 1035 section 3.1, pointers 4.1.4) to text."""

from __future__ import annotations

from gfwemu.dissect.reader import MalformedBytes, Reader

# RFC 1035 section 2.3.4: 255 bytes, length bytes and the root's included.
_LONGEST_NAME = 255
_LONGEST_LABEL = 63
# A name of 255 bytes has at most 127 labels; whoever points more often goes in circles.
_MOST_POINTERS = 127


def _escapes() -> tuple[str, ...]:
    """For each byte its text: lower case, and as RFC 1035 section 5.1 escapes it in master files."""
    table = [chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}" for byte in range(256)]
    table[ord(".")] = "\\."
    table[ord("\\")] = "\\\\"
    return tuple(text.lower() for text in table)


_TEXT = _escapes()
_FLAT_TEXT = tuple("." if byte == ord(".") else "\\" if byte == ord("\\") else text for byte, text in enumerate(_TEXT))
_PLAIN_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
_PLAIN = frozenset(_PLAIN_BYTES)


def label_text(label: bytes) -> str:
    """A label in lower case; bytes that are not printable are `\\DDD`, dots and backslashes inside it `\\.`, `\\\\`."""
    if _PLAIN.issuperset(label):
        return label.decode("ascii").lower()
    return "".join([_TEXT[byte] for byte in label])


def read_name(reader: Reader, message: bytes) -> str:
    """Reads a name at the reader's position and follows compression pointers within `message`, forward ones too.

    The result has no trailing dot; the root is ".". Raises MalformedBytes for reserved label types, names over 255
    bytes and circles.
    """
    labels: list[bytes] = []
    total = 1
    pointers = 0
    while length := reader.u8():
        if length >= 0xC0:
            pointers += 1
            if pointers > _MOST_POINTERS:
                raise MalformedBytes("DNS name: pointers go in circles")
            reader = Reader(message, "DNS name", start=(length & 0x3F) << 8 | reader.u8())
            continue
        if length > _LONGEST_LABEL:
            raise MalformedBytes("DNS name: reserved label type")
        total += length + 1
        if total > _LONGEST_NAME:
            raise MalformedBytes("DNS name: longer than 255 bytes")
        labels.append(reader.take(length))
    if not b"".join(labels).translate(None, _PLAIN_BYTES):
        return b".".join(labels).decode("ascii").lower() or "."
    return ".".join([label_text(label) for label in labels])


def read_plain_name(message: bytes, start: int) -> tuple[str, int] | None:
    """The name at `start`, and the offset behind it. None where it takes `read_name` to read it, or to refuse it."""
    labels: list[bytes] = []
    position, size = start, len(message)
    while position < size:
        length = message[position]
        position += 1
        if not length:
            if not labels or position - start > _LONGEST_NAME or b"".join(labels).translate(None, _PLAIN_BYTES):
                return None
            return b".".join(labels).decode("ascii").lower(), position
        if length > _LONGEST_LABEL:
            return None
        labels.append(message[position : position + length])
        position += length
    return None


def read_flat_name(message: bytes, start: int, buffer: int) -> tuple[str, int]:
    """The name at `start` and the offset behind it, as injector 3 of China's firewall reads names.

    Fan et al. took it apart ("Wallbleed", NDSS 2025). It copies labels of any length into `buffer` bytes, dots between
    and a NUL at the end, and takes the result for a C string: a compression pointer is a length, a dot inside a label
    separates, a NUL ends the text. Behind the message it read the memory that was there; here there are zeros. That
    the name ends where the buffer is full is a guess.
    """
    text = bytearray()
    position = start
    room = buffer - 1
    while (length := message[position] if position < len(message) else 0) and len(text) < room:
        if text:
            text += b"."
        label = message[position + 1 : position + 1 + length].ljust(length, b"\0")[: room - len(text)]
        text += label
        position += 1 + len(label)
    end = position if length and len(text) == room else position + 1
    return "".join([_FLAT_TEXT[byte] for byte in bytes(text).partition(b"\0")[0]]) or ".", end
