"""What a server reads and what it throws away: the model of the replay and Linux itself must agree on all of it."""

from __future__ import annotations

from typing import Any

IGNORED: list[tuple[dict[str, Any], bool]] = [
    ({"packet": "PA", "payload": "junk"}, False),
    ({"packet": "PA", "payload": "junk", "checksum": "bad"}, True),
    ({"packet": "PA", "payload": "junk", "ttl": "censor"}, True),
    ({"packet": "PA", "payload": "junk", "ttl": "before-censor"}, True),
    ({"packet": "PA", "payload": "junk", "md5": True}, True),
    ({"packet": "PA", "payload": "junk", "ack": "wrong"}, True),
    ({"packet": "PA", "payload": "junk", "data_offset": 3}, True),
    ({"packet": "PA", "payload": "junk", "seq": 100_000}, True),
    ({"packet": "P", "payload": "junk"}, True),
    ({"packet": "none", "payload": "junk"}, True),
    ({"packet": "F", "payload": "junk"}, True),
    ({"packet": "R"}, False),
    ({"packet": "R", "seq": 5}, True),
    ({"packet": "R", "checksum": "bad"}, True),
    ({"packet": "R", "md5": True}, True),
    ({"packet": "S", "seq": 500}, True),
]
"""A packet between handshake and request, and whether the server then reads the request, all of it and nothing else."""

SHAPES: list[dict[str, Any]] = [
    {"cut": [8, 4]},
    {"cut": [8, 4], "order": [3, 1, 2]},
    {"cut": "half"},
    {"cut": [10], "overlap": 3},
    {"fragments": [24, 16]},
    {"fragments": [24], "fragment_order": [2, 1]},
    {"cut": [5], "times": 2},
]
"""Ways to send a request that a server puts together."""
