"""Who decides packets goes before the programs whose packets wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gfwemu.daemon.censor import go_first
from gfwemu.kernel.sandbox import enter_new_user_namespace, in_child

_ATTEMPT = "import os; os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)"


def _niceness() -> str:
    go_first()
    return str(os.getpriority(os.PRIO_PROCESS, 0))


def test_it_goes_first_where_it_may() -> None:
    allowed = subprocess.run([sys.executable, "-c", _ATTEMPT], check=False, stderr=subprocess.DEVNULL).returncode == 0
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert (int(in_child(_niceness, 10)) < ours) is allowed
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


@pytest.mark.kernel
def test_it_works_on_where_it_may_not() -> None:
    def confined() -> str:
        enter_new_user_namespace()
        return _niceness()

    assert int(in_child(confined, 10)) == os.getpriority(os.PRIO_PROCESS, 0)
