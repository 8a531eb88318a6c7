"""Child processes: no secrets go in, nothing dangerous comes out, nothing is left behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from threading import Timer

import psutil
import pytest

from engine.core.errors import PreconditionError, Stopped
from engine.core.events import Message
from engine.process import children, kill, output
from engine.process.children import (
    clean_environment,
    installer_settings,
    run_child,
    stream_child,
    stream_child_as_messages,
)
from engine.run.stop import StopToken
from tests.conftest import run_stage


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_output_exit_code_and_errors_are_distinguished() -> None:
    result = run_child(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"), limit_seconds=20)
    assert (result.code, result.output, result.ok) == (7, ("out",), False)
    assert sorted(result.tail) == ["err", "out"]
    assert "exit code 7" in result.ending


def test_the_signal_that_ended_a_child_is_named_and_no_long_line_hides_the_last_one() -> None:
    result = run_child(
        python("import os; print('x' * 5000); print('the cause', flush=True); os.kill(os.getpid(), 9)"),
        limit_seconds=20,
    )
    assert result.killed_by == "SIGKILL" and result.ending.startswith(
        "ended by SIGKILL, as the kernel does if memory runs out: xxx"
    )
    assert result.ending.endswith("… / the cause")


def test_lines_arrive_while_the_child_is_running() -> None:
    lines = stream_child(python("import time; print('first', flush=True); time.sleep(60)"), limit_seconds=60)
    assert next(lines) == "first"
    lines.close()


def test_a_closed_stream_leaves_no_process_behind() -> None:
    lines = stream_child(["sh", "-c", "sleep 987 & echo $!; wait"], limit_seconds=60)
    grandchild = int(next(lines))
    lines.close()
    assert not is_running(grandchild)


@pytest.mark.fault("F12")
def test_a_child_past_its_limit_is_killed_with_its_children_even_if_they_ignore_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kill, "GRACE_SECONDS", 0.3)
    started = time.monotonic()
    result = run_child(["sh", "-c", "trap '' TERM; sleep 986 & echo $!; while :; do sleep 1; done"], limit_seconds=0.5)
    assert result.timed_out and not result.ok
    assert time.monotonic() - started < 5
    assert not is_running(int(result.output[0]))


def test_a_grandchild_that_holds_the_pipes_does_not_block_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "DRAIN_SECONDS", 0.2)
    result = run_child(["sh", "-c", "sleep 985 & echo $!"], limit_seconds=60)
    assert result.code == 0 and result.seconds < 10
    assert not is_running(int(result.output[0]))


@pytest.mark.fault("F12")
def test_a_grandchild_in_its_own_session_is_also_ended() -> None:
    result = run_child(["sh", "-c", "setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 983'"], limit_seconds=0.5)
    assert result.timed_out
    assert not is_running(int(result.output[0]))


@pytest.mark.fault("F12")
def test_a_daemon_without_parent_and_pipes_is_ended_with_the_child(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    daemon = f"setsid sh -c 'echo $$ > {noted}; exec sleep 982' </dev/null >/dev/null 2>&1 &"
    result = run_child(["sh", "-c", f"{daemon} while ! [ -s {noted} ]; do sleep 0.01; done"], limit_seconds=60)
    assert result.code == 0
    assert not is_running(int(noted.read_text()))


def test_processes_with_another_childs_mark_are_left_alone() -> None:
    other = stream_child(["sh", "-c", "echo $$; exec sleep 981"], limit_seconds=60)
    pid = int(next(other))
    run_child(["true"], limit_seconds=20)
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    other.close()


@pytest.mark.fault("A4")
def test_a_child_that_gets_the_jobs_signal_before_the_run_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sends it to one process after the other."""
    stop = StopToken()
    Timer(0.3, stop.request, ("SIGTERM",)).start()
    with pytest.raises(Stopped):
        run_child(["sh", "-c", "kill -TERM $$"], limit_seconds=60, stop=stop)
    monkeypatch.setattr(children, "JOB_SIGNAL_SECONDS", 0.1)
    assert run_child(["sh", "-c", "kill -TERM $$"], limit_seconds=60, stop=StopToken()).killed_by == "SIGTERM"


def test_a_request_to_stop_ends_the_child() -> None:
    stop = StopToken()
    stop.request("a test")
    with pytest.raises(Stopped):
        run_child(["sleep", "984"], limit_seconds=60, stop=stop)


@pytest.mark.fault("F13", "G1")
def test_output_of_a_child_cannot_control_a_terminal() -> None:
    result = run_child(
        python("import os; os.write(1, b'a\\x1b]52;c;x\\x07b\\x00\\xff\\xc2\\x9b2J\\nprogress 1\\rprogress 2\\n')"),
        limit_seconds=20,
    )
    assert result.output == ("a␛]52;c;x␇b␀\ufffd\\x9b2J", "progress 1", "progress 2")


def test_output_of_a_child_is_sent_as_messages_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    events, result = run_stage(
        stream_child_as_messages(["sh", "-c", "printf 'one\\033[2J\\n'; exit 3"], prefix="pip", limit_seconds=20)
    )
    assert events == [Message("info", "pip: one␛[2J")] and result.code == 3
    assert "pip: one␛[2J" in caplog.text


@pytest.mark.fault("F13")
def test_an_endless_line_is_cut() -> None:
    result = run_child(python("import os\nfor _ in range(64): os.write(1, b'x' * 65536)"), limit_seconds=20)
    assert len(result.output) == 1 and len(result.output[0]) <= output.MAX_LINE_CHARACTERS


@pytest.mark.fault("F13")
def test_endless_lines_are_counted_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_LINES", 10)
    lines = list(stream_child(python("for i in range(5000): print(i)"), limit_seconds=20))
    assert len(lines) == 11 and "more than 10 lines" in lines[-1]


def test_a_child_gets_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "UV_PUBLISH_TOKEN"):
        monkeypatch.setenv(name, "hf_canary")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    seen = run_child(["env"], limit_seconds=20, extra={"GIVEN": "yes"}).output
    assert not [line for line in seen if "hf_canary" in line]
    assert {"GIVEN=yes", "https_proxy=http://proxy:1"} <= set(seen)
    assert clean_environment()["PATH"] == os.environ["PATH"]


def test_only_installers_get_the_settings_of_uv_and_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_URL", "https://mirror.example.org/simple")
    monkeypatch.setenv("UV_INDEX_PRIVATE_PASSWORD", "hf_canary")
    assert "UV_INDEX_URL" not in clean_environment()
    assert clean_environment(installer_settings())["UV_INDEX_URL"] == "https://mirror.example.org/simple"
    assert "hf_canary" not in str(clean_environment(installer_settings()))


def test_git_gets_the_configured_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", "/etc/corporate.pem")
    assert clean_environment()["GIT_SSL_CAINFO"] == "/etc/corporate.pem"


@pytest.mark.parametrize(
    "name",
    [
        "ATEN_CPU_CAPABILITY",
        "MKL_CBWR",
        "OPENBLAS_CORETYPE",
        "CUBLAS_WORKSPACE_CONFIG",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    ],
)
def test_a_child_computes_as_this_process_does(name: str, monkeypatch: pytest.MonkeyPatch):
    """With other kernels, processes that share a task would round differently."""
    monkeypatch.setenv(name, "chosen")
    assert clean_environment()[name] == "chosen"


@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o644), (0o022, 0o644), (0o077, 0o600)])
def test_files_that_a_child_creates_are_not_writable_by_others(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        run_child(["touch", str(tmp_path / "made")], limit_seconds=20)
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == mode


@pytest.mark.fault("F10")
def test_a_child_cannot_prompt_on_the_terminal() -> None:
    result = run_child(python("import sys\nprint(repr(sys.stdin.read()))\nopen('/dev/tty')"), limit_seconds=20)
    assert result.output == ("''",) and result.code != 0


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="no-such-program"):
        run_child([str(tmp_path / "no-such-program")], limit_seconds=5)


def is_running(pid: int) -> bool:
    """A killed process of another parent may be a zombie for a moment."""
    for _ in range(50):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.02)
    return True
