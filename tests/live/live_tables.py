"""What the rules of features.yaml look like from the client, whoever decides: the engine or the kernel."""

from __future__ import annotations

# name, curl's exit codes: what the interference looks like from the client.
BLOCKED = [
    ("https://endpoint-drop.example/", {28}),
    ("https://endpoint-reset.example/", {7}),
    ("https://sni-drop.example/", {28}),
    ("https://www.sni-drop.example/", {28}),
    ("https://SNI-Drop.Example/", {28}),
    ("https://sni-reset.example/", {35}),
    ("https://sni-fin.example/", {35}),
    ("https://sni-rewrite.example/", {35}),
    ("https://sni-alert.example/", {35}),
    ("http://www.allowed.example/ForbiddenString", {28}),
    ("http://www.allowed.example/ResetString", {56}),
    ("http://www.allowed.example/FinString", {52}),
]

# Names close to the blocked ones, and innocent failures, which look like themselves and fire no rule.
INNOCENT = [
    ("https://www.allowed.example/", 0, "hello from www.allowed.example"),
    ("https://not-sni-drop.example/", 0, "hello from"),
    ("https://sni-drop.example.test/", 0, "hello from"),
    ("https://shielded.sni-drop.example/", 0, "hello from"),
    ("https://sni-notice.example/", 0, "hello from"),
    ("https://sni-outside-only.example/", 0, "hello from"),
    ("https://sni-night.example/", 0, "hello from"),
    ("http://unreachable.example/", 0, "hello from"),
    ("http://www.allowed.example/forbidden-string", 0, "hello from"),
    ("https://expired.example/", 60, ""),
    ("https://mismatch.example/", 60, ""),
    ("https://close.example/", 52, ""),
    ("http://refused.example/", 7, ""),
    ("http://absent.example/", 6, ""),
]
