"""examples/kubernetes: what the container starts, and how the job treats its exit codes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.core.errors import ExitCode
from tests.support.example_programs import EXAMPLES, WAITS_FOR_SIGTERM, Programs, configuration_of

FILE = EXAMPLES / "kubernetes/job.yaml"
JOB: dict[str, Any] = next(
    part for part in yaml.safe_load_all(FILE.read_text(encoding="utf-8")) if part["kind"] == "Job"
)
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


def container_command(secret: Path) -> list[str]:
    return [word.replace("/run/secrets/hf/token", str(secret)) for word in [*CONTAINER["command"], *CONTAINER["args"]]]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("hf_" + "b" * 34 + "\n", encoding="utf-8")
    return file


def test_the_container_starts_the_program_with_options_that_exist(tmp_path, secret):
    programs = Programs(tmp_path)
    programs.add("stage3-tui", 'cat > "{folder}/given"')
    assert programs.start(*container_command(secret)).wait(60) == 0
    (command,) = programs.calls("stage3-tui")
    config = configuration_of(command)
    assert config.num_examples == 2500
    assert {str(config.output_dir), str(config.adapter_path)} == {
        "/runs/stage3_constitutional",
        "/runs/stage2/lora_adapters",
    }
    assert "--token-stdin" in command
    assert (tmp_path / "given").read_text() == secret.read_text()


def test_sigterm_reaches_the_program_and_the_container_exits_with_its_code(tmp_path, secret):
    programs = Programs(tmp_path)
    programs.add("stage3-tui", WAITS_FOR_SIGTERM)
    container = programs.start(*container_command(secret))
    assert int(programs.wait_for("pid")) == container.pid, "the shell is still running, and would not forward signals"
    container.send_signal(signal.SIGTERM)
    assert container.wait(60) == ExitCode.TERMINATED


def test_only_failures_that_the_same_command_can_fix_are_retried():
    rules = {rule["action"]: rule for rule in JOB["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    assert rules["Ignore"]["onExitCodes"]["values"] == [ExitCode.TERMINATED]
    final = set(rules["FailJob"]["onExitCodes"]["values"])
    # The next start may succeed after a bug, a network error, lack of memory or a lock; nobody presses Ctrl+C here.
    assert set(map(int, ExitCode)) - final - {0, ExitCode.TERMINATED} == {
        ExitCode.BUG,
        ExitCode.NETWORK,
        ExitCode.MEMORY,
        ExitCode.LOCKED,
        ExitCode.HANGUP,
        ExitCode.INTERRUPTED,
    }
    assert POD["restartPolicy"] == "Never"  # podFailurePolicy requires it


def test_the_container_has_few_privileges_and_every_folder_that_it_writes_is_a_volume():
    assert POD["securityContext"]["runAsNonRoot"] and CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert set(mounted.values()) == volumes
    assert {variable["value"] for variable in CONTAINER["env"]} | {"/dev/shm", "/runs"} <= set(mounted)
    assert POD["terminationGracePeriodSeconds"] >= 300
