"""A fail point fails at the requested call, and nowhere else."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.core.failpoints import POINTS, VARIABLE, failing, failpoint

ROOT = Path(__file__).parents[2]


def test_the_nth_call_fails_with_the_given_errno_and_the_others_succeed():
    with failing("sync=EIO@3") as armed:
        assert not failpoint("sync") and not failpoint("append") and not failpoint("sync")
        with pytest.raises(OSError, match="Input/output error") as failed:
            failpoint("sync")
        assert failed.value.errno == errno.EIO
        assert not failpoint("sync")
    assert armed.fired == 1 and armed.reached == {"sync": 4, "append": 1}


def test_with_a_plus_every_later_call_fails_as_on_a_disk_that_stays_full():
    with failing("append=ENOSPC@2+"):
        failpoint("append")
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                failpoint("append")


def test_memory_runs_out_and_a_number_becomes_nan():
    with failing("checkpoint=memory@1,loss=nan@2"):
        with pytest.raises(MemoryError):
            failpoint("checkpoint")
        assert [failpoint("loss") for _ in range(3)] == [False, True, False]


def test_outside_the_block_nothing_fails():
    with failing("sync=EIO@1+"):
        pass
    assert not failpoint("sync")


@pytest.mark.parametrize("rule", ["sync", "sync=EIO", "sink=EIO@1", "sync=ENOTHING@1", "sync=EIO@x"])
def test_a_rule_that_could_never_apply_is_refused(rule: str):
    with pytest.raises(ValueError, match=r"fail point|action"), failing(rule):
        pass


@pytest.mark.parametrize(
    ("action", "ending"), [("abort", -signal.SIGABRT), ("kill", -signal.SIGKILL), ("term", 143), ("hang", None)]
)
def test_a_process_reads_its_rules_from_the_environment(action: str, ending: int | None):
    code = (
        "import signal, sys; from engine.process.environment import disable_core_dumps; disable_core_dumps();"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "from engine.core.failpoints import failpoint; failpoint('sync'); print('first', flush=True);"
        "failpoint('sync'); print('second')"
    )
    environment = {**os.environ, VARIABLE: f"sync={action}@2"}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"first\n"
        if ending is None:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.kill()
        assert process.wait(20) == (-signal.SIGKILL if ending is None else ending)
        assert process.stdout.read() == b""


def test_the_fail_points_in_the_code_are_those_in_the_table():
    used = {
        name
        for path in (ROOT / "engine").rglob("*.py")
        if path.name != "failpoints.py"
        for name in re.findall(r'failpoint\("(\w+)"\)', path.read_text(encoding="utf-8"))
    }
    assert used == set(POINTS)
