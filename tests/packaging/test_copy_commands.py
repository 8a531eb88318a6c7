"""The `scp` command has the address that the person connected to, and its quoting survives both shells."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from engine.packaging.copy_commands import check_command, scp_command, unzip_command

ARCHIVE = Path("/data/runs/one_artifacts.zip")


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("198.51.100.7 51000 192.0.2.44 22", "scp anna@192.0.2.44:/data/runs/one_artifacts.zip ."),
        ("198.51.100.7 51000 192.0.2.44 2222", "scp -P 2222 anna@192.0.2.44:/data/runs/one_artifacts.zip ."),
        ("2001:db8::7 51000 2001:db8::44 22", "scp 'anna@[2001:db8::44]:/data/runs/one_artifacts.zip' ."),
        ("2001:db8::7 51000 2001:db8::44 2200", "scp -P 2200 'anna@[2001:db8::44]:/data/runs/one_artifacts.zip' ."),
        ("::ffff:198.51.100.7 1 ::ffff:192.0.2.44 22", "scp anna@192.0.2.44:/data/runs/one_artifacts.zip ."),
        # An address with a zone belongs to an interface of this machine, and means nothing on another one.
        ("fe80::7%eth0 51000 fe80::44%eth0 22", "scp anna@gpu-box:/data/runs/one_artifacts.zip ."),
        ("UNKNOWN 65535 UNKNOWN 65535", "scp anna@gpu-box:/data/runs/one_artifacts.zip ."),
        ("198.51.100.7 51000 192.0.2.44", "scp anna@192.0.2.44:/data/runs/one_artifacts.zip ."),
        ("198.51.100.7 51000 192.0.2.44 many", "scp anna@192.0.2.44:/data/runs/one_artifacts.zip ."),
        ("1 2 $(id) 22", "scp anna@gpu-box:/data/runs/one_artifacts.zip ."),
        ("", "scp anna@gpu-box:/data/runs/one_artifacts.zip ."),
    ],
)
def test_the_host_is_the_address_that_the_person_connected_to_or_the_machines_name(connection: str, expected: str):
    assert scp_command([ARCHIVE], connection=connection, user="anna", host="gpu-box") == expected


def test_without_a_login_name_scp_uses_its_own():
    assert scp_command([ARCHIVE], connection="", user="", host="gpu-box") == f"scp gpu-box:{ARCHIVE} ."


@pytest.mark.parametrize(
    "path",
    [
        "/data/my runs/one (2)_artifacts.zip",
        '/data/it\'s/"quoted"/a.zip',
        "/data/$HOME/`id`/$(id)/a;b&c|d.zip",
        "/data/back\\slash/st*r/wh?t/[ab]/{c,d}.zip",
        "/data/größe/тест/a.zip",
        "/data/~anna/#1/!2/a<b>c.zip",
    ],
)
def test_the_path_survives_the_local_and_the_remote_shell(path: str):
    line = scp_command([Path(path)], connection="", user="anna", host="gpu-box")
    operand = _words_of(line)[1]
    assert operand.startswith("anna@gpu-box:")
    assert _words_of(operand.removeprefix("anna@gpu-box:")) == [path]


def test_a_path_with_a_line_break_becomes_one_line_that_matches_it():
    line = scp_command([Path("/data/two\nlines/a.zip")], connection="", user="anna", host="gpu-box")
    assert line == "scp 'anna@gpu-box:/data/two?lines/a.zip' ."


def test_both_files_are_in_one_command():
    line = scp_command([ARCHIVE, Path(f"{ARCHIVE}.sha256")], connection="", user="anna", host="gpu-box")
    assert line.count("anna@gpu-box:") == 2 and line.endswith(".sha256 .")


@pytest.mark.parametrize("name", ["one_artifacts.zip", "my run_artifacts.zip", "-x_artifacts.zip"])
def test_a_name_that_looks_like_an_option_is_passed_as_a_file(name: str):
    for line in (check_command(Path("/data") / name), unzip_command(Path("/data") / name)):
        assert shlex.split(line)[-1].removeprefix("./") == name
        assert not re.search(r" -x", line)


def _words_of(line: str) -> list[str]:
    """Split a command into words with a real shell, without running it."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]
