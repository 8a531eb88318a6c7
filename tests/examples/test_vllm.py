"""examples/vllm, run with a stand-in for `vllm` that answers on a real port."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest

from engine.core.errors import ExitCode
from tests.support.example_programs import EXAMPLES, WAITS_FOR_SIGTERM, Programs, configuration_of

SCRIPT = EXAMPLES / "vllm/serve-and-run.sh"
SERVER = """printf '%s' "$VLLM_API_KEY" > "{folder}/key"
while [ "$1" != --port ]; do shift; done
echo $$ > "{folder}/server"
echo ok > "{folder}/health"
exec PYTHON -m http.server --bind 127.0.0.1 --directory "{folder}" "$2"
""".replace("PYTHON", sys.executable)


@pytest.fixture
def vllm(tmp_path: Path) -> Programs:
    programs = Programs(tmp_path)
    programs.add("vllm", SERVER)
    programs.add("stage3-tui", 'printf "%s" "$STAGE3_SERVER_TOKEN" > "{folder}/given"')
    return programs


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_vllm_serves_the_adapter_and_the_run_requests_it_by_name(vllm):
    port = free_port()
    script = vllm.start(SCRIPT, "--num-examples", "9", PORT=port, BASE="base/model", ADAPTER="my/adapter")
    script.communicate(timeout=60)
    assert script.returncode == 0
    (serve,) = vllm.calls("vllm")
    assert serve[:2] == ["serve", "base/model"]
    assert "--enable-lora" in serve
    assert serve[serve.index("--lora-modules") + 1] == "stage2=my/adapter"
    assert serve[serve.index("--host") + 1] == "127.0.0.1"
    (command,) = vllm.calls("stage3-tui")
    config = configuration_of(command)
    assert (config.base_model_id, str(config.adapter_path), config.server_model, config.num_examples) == (
        "base/model",
        "my/adapter",
        "stage2",
        9,
    )
    assert command[command.index("--server-url") + 1] == f"http://127.0.0.1:{port}/v1"
    assert is_gone(int(vllm.wait_for("server")))


def test_each_gpu_gets_a_server_and_the_run_uses_all_of_them(vllm):
    port = int(free_port())
    script = vllm.start(SCRIPT, PORT=str(port), VLLM_GPUS="0 2")
    script.communicate(timeout=60)
    assert script.returncode == 0
    assert len(vllm.calls("vllm")) == 2
    (command,) = vllm.calls("stage3-tui")
    assert configuration_of(command).server_url == (f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{port + 1}/v1")


def test_server_and_run_share_a_key_that_is_on_no_command_line(vllm):
    vllm.start(SCRIPT, PORT=free_port()).communicate(timeout=60)
    key = (vllm.folder / "key").read_text()
    assert len(key) >= 32 and key == (vllm.folder / "given").read_text()
    assert key not in vllm.calls_file.read_text()


@pytest.mark.parametrize("code", [int(ExitCode.DATA), 0])
def test_the_script_exits_with_the_code_of_the_run(vllm, code):
    vllm.add("stage3-tui", f"exit {code}")
    script = vllm.start(SCRIPT, PORT=free_port())
    script.communicate(timeout=60)
    assert script.returncode == code


def test_sigterm_stops_first_the_run_and_then_the_server(vllm):
    vllm.add("stage3-tui", WAITS_FOR_SIGTERM)
    script = vllm.start(SCRIPT, PORT=free_port())
    vllm.wait_for("pid")
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=60)
    assert script.returncode == ExitCode.TERMINATED
    assert is_gone(int(vllm.wait_for("server")))


def test_a_server_that_does_not_start_is_reported_and_nothing_is_run(vllm):
    vllm.add("vllm", "exit 7")
    script = vllm.start(SCRIPT, PORT=free_port())
    output, _ = script.communicate(timeout=60)
    assert script.returncode == ExitCode.PRECONDITION
    assert "vLLM exited with 7" in output
    assert vllm.calls("stage3-tui") == []
