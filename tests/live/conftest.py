"""The live tests share a lab for each module: real programs, the real queue, rules of every feature."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live_kit import HERE, TOPOLOGY, Client

from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client behind the censor of features.yaml."""
    with Lab(load_topology(str(TOPOLOGY)), rules=[HERE / "features.yaml"]) as lab:
        yield Client(lab)
