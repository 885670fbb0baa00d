"""No bytes, no text and no structure ever gives a traceback: either rules or problems that have a place."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gfwemu.errors import Problem, RulesError
from gfwemu.rules.actions import ACTIONS
from gfwemu.rules.fields import rule_fields
from gfwemu.rules.load import load_rules
from gfwemu.rules.tree import parse_tree, plain

PIECES = "*a &a !!str [ ] { - : | > # ? --- ... ~ 1e999 0x \\U ' \""
SNIPPETS = st.sampled_from(
    [
        "version: 1\n",
        "rules:\n",
        "  - name: a\n",
        "    match: {tls.sni: ",
        "}\n",
        "%YAML 1.1\n",
        "\x85",
        "\t",
        "\n",
        " ",
    ]
).flatmap(lambda text: st.sampled_from([text, *PIECES.split(" ")]))


@given(st.lists(st.one_of(SNIPPETS, st.text(max_size=5)), max_size=30).map("".join))
@example("a: '")
@example('"\\UFFFFFFFF"')
def test_no_text_gives_a_traceback(text: str) -> None:
    load_bytes(text.encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=60))
def test_no_bytes_give_a_traceback(data: bytes) -> None:
    load_bytes(data)


def load_bytes(data: bytes) -> None:
    for problem in problems_in(data):
        assert problem.message
        assert "\n" not in problem.message
        assert problem.place.file


def problems_in(data: bytes) -> tuple[Problem, ...]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rules.yaml"
        path.write_bytes(data)
        try:
            load_rules([path])
        except RulesError as error:
            return error.problems
        return ()


WORDS = [
    "@news",
    "@nets",
    "example.com",
    "203.0.113.0/24",
    ">=5",
    "1-3",
    "10ms",
    "128kbit",
    "both",
    "drop",
    "3tuple",
    "R",
]
KEYS = ["not", "is", "prefix", "hex", "offset", "quantiles", "p5", "p50"]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-10, 2**70),
        st.floats(allow_nan=True),
        st.text(max_size=6),
        st.sampled_from(WORDS),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)),
    max_leaves=5,
)


def some_of(*names: str) -> st.SearchStrategy[Any]:
    return st.one_of(st.fixed_dictionaries({}, optional=dict.fromkeys(names, VALUES)), VALUES)


PARAMETERS = sorted({name for model in ACTIONS.values() for name in model.model_fields})
MATCH_KEYS = [*rule_fields(), "any", "python"]
RULES = st.fixed_dictionaries(
    {"name": st.one_of(st.text("ab", min_size=1, max_size=2), VALUES), "action": st.sampled_from(sorted(ACTIONS))},
    optional={
        "match": st.one_of(
            st.dictionaries(st.sampled_from([*rule_fields(), "any", "python"]), VALUES, max_size=3), VALUES
        ),
        "with": st.one_of(st.dictionaries(st.sampled_from(PARAMETERS), VALUES, max_size=3), VALUES),
        "residual": some_of("key", "seconds", "action"),
        "probability": VALUES,
        "placement": st.sampled_from(["on-path", "in-path", "x"]),
        "schedule": some_of("hours", "days", "dates", "timezone"),
        "cite": VALUES,
    },
)
LISTS = {"news": {"entries": ["example.com"]}, "nets": {"format": "cidr", "entries": ["203.0.113.0/24"]}}
FILES = st.fixed_dictionaries(
    {"version": st.just(1), "rules": st.lists(RULES, max_size=3)},
    optional={
        "lists": st.just(LISTS),
        **dict.fromkeys(("defaults", "engine", "inside", "subscribers", "include", "disable"), VALUES),
    },
)


@settings(max_examples=150)
@given(FILES)
def test_no_structure_gives_a_traceback(document: dict[str, Any]) -> None:
    load_bytes(yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.text("ab :#-", max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_the_tree_holds_what_was_written(document: Any) -> None:
    text = yaml.safe_dump(document, default_style='"') if isinstance(document, str) else yaml.safe_dump(document)
    tree, problems = parse_tree(text.encode(), "x")
    assert not problems or document is None
    assert tree is None or plain(tree) == document
