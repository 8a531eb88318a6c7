"""Cloning: interrupted, hanging, asking for a password, hostile content; by path, and from a real https server."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core.errors import (
    AccessError,
    ConfigError,
    DiskError,
    NetworkError,
    PreconditionError,
    Stage3Error,
    Stopped,
)
from engine.process import kill
from engine.process.children import ChildResult
from engine.stages import workspace
from engine.workspace import clone
from engine.workspace.errors import git_failure
from engine.workspace.git import fetch_environment
from engine.workspace.urls import Source
from tests.support.git_repositories import context, drive, git, make_upstream, names_in, program

GIT = shutil.which("git")


def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when_cloning: str) -> None:
    """Put a git first on PATH that is the real one except for `git clone`, which runs shell code with the command in "$@"."""
    script = f'#!/bin/sh\ncase " $* " in *" clone "*) {when_cloning};; esac\nexec {GIT} "$@"\n'
    program(tmp_path / "bin", "git", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


# -- transfers that fail -----------------------------------------------------------------------------------------------

CUTTER = f"""#!{sys.executable} -S
# `git clone` from the real git-upload-pack, which is cut off after so many bytes.
import os, subprocess, sys
if sys.argv[1] == "clone":
    at = sys.argv.index("clone", 2) + 1
    os.execv("{GIT}", ["git", *sys.argv[3:at], f"--upload-pack={{__file__}} cut {{sys.argv[2]}}", *sys.argv[at:]])
child = subprocess.Popen(["git-upload-pack", *sys.argv[3:]], stdout=subprocess.PIPE)
left = int(sys.argv[2])
while left and (data := os.read(child.stdout.fileno(), min(left, 4096))):
    left -= os.write(1, data)
child.kill()
"""


def heavy(upstream: Path) -> None:
    """Commit random bytes, which do not compress: the transfer takes more than a few packets."""
    (upstream / "noise").write_bytes(os.urandom(300_000))
    git(upstream, "add", ".")
    git(upstream, "commit", "-qm", "noise")


@pytest.mark.fault("F9")
@pytest.mark.parametrize("bytes_sent", [0, 100, 5_000, 200_000])
def test_a_cut_transfer_leaves_nothing_behind(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch, bytes_sent: int
) -> None:
    heavy(upstream)
    (here / "upstream").mkdir()
    cutter = program(tmp_path / "bin", "cutter", CUTTER)
    fake_git(tmp_path, monkeypatch, f'exec {cutter} clone {bytes_sent} "$@"')
    with pytest.raises(NetworkError, match="Cannot clone") as cut:
        drive(context(tmp_path, repo_url=str(upstream)))
    assert cut.value.exit_code == 5
    assert names_in(here) == {"upstream"} and names_in(here / "upstream") == set()


def test_the_cutter_lets_a_complete_transfer_through(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutter = program(tmp_path / "bin", "cutter", CUTTER)
    fake_git(tmp_path, monkeypatch, f'exec {cutter} clone 10000000 "$@"')
    drive(context(tmp_path, repo_url=str(upstream)))
    assert (here / "upstream/readme").read_text() == "second"


@pytest.mark.fault("F9")
def test_a_killed_git_leaves_nothing_behind_and_the_next_clone_works(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_git(tmp_path, monkeypatch, f'[ -e {tmp_path}/second ] || {{ {GIT} "$@"; kill -9 $$; }}')
    with pytest.raises(NetworkError) as killed:
        drive(context(tmp_path, repo_url=str(upstream)))
    assert "SIGKILL" in killed.value.why
    assert names_in(here) == set()
    (tmp_path / "second").touch()
    drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here) == {"upstream"}


def test_a_git_that_hangs_is_ended_at_the_time_limit(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone, "CLONE_SECONDS", 0.5)
    fake_git(tmp_path, monkeypatch, "exec sleep 975")
    with pytest.raises(NetworkError) as hung:
        drive(context(tmp_path, repo_url=str(upstream)))
    assert "timed out after" in hung.value.why
    assert names_in(here) == set()


def test_a_stop_request_ends_a_clone_and_leaves_nothing(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill, "GRACE_SECONDS", 0.2)
    fake_git(tmp_path, monkeypatch, "echo begun; trap '' TERM; while :; do sleep 0.1; done")
    given = context(tmp_path, repo_url=str(upstream))
    stage = workspace.run(given)
    while "begun" not in str(next(stage)):
        pass
    given.stop.request("a test")
    with pytest.raises(Stopped):
        next(stage)
    assert names_in(here) == set()


def test_closing_the_stage_during_a_clone_leaves_nothing(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_git(tmp_path, monkeypatch, "echo begun; exec sleep 974")
    stage = workspace.run(context(tmp_path, repo_url=str(upstream)))
    while "begun" not in str(next(stage)):
        pass
    stage.close()
    assert names_in(here) == set()


def test_the_unfinished_clone_of_a_killed_run_is_named_and_not_touched(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    (here / ".upstream.clone-killed/upstream").mkdir(parents=True)
    _, events = drive(context(tmp_path, repo_url=str(upstream)))
    assert ".upstream.clone-killed is an unfinished clone: it was killed" in str(events)
    assert names_in(here) == {"upstream", ".upstream.clone-killed"}


@pytest.mark.parametrize("damage", ["another commit", "another file"])
def test_a_clone_with_wrong_content_is_not_renamed(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    fault = {
        "another commit": f'{GIT} "$@"; exec {GIT} -C "$clone" checkout -q --detach v1',
        "another file": f'{GIT} "$@"; echo changed > "$clone/readme"; exit',
    }[damage]
    script = f"#!/bin/sh\nclone=$(echo {here}/.upstream.clone-*/upstream)\n"
    script += f'case " $* " in *" checkout "*) {fault};; esac\nexec {GIT} "$@"\n'
    program(tmp_path / "bin", "git", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(PreconditionError, match=r"clone (is at|differ from)") as refused:
        drive(context(tmp_path, repo_url=str(upstream)))
    assert damage == "another commit" or refused.value.why.startswith("readme: ")
    assert names_in(here) == set()


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("fatal: write error: No space left on device / fatal: early EOF", DiskError),
        ("fatal: detected dubious ownership in repository at '/x'", PreconditionError),
        ("Host key verification failed. / fatal: Could not read from remote repository.", AccessError),
        ("git@example.org: Permission denied (publickey).", AccessError),
        ("fatal: could not read Username for 'https://example.org': terminal prompts disabled", AccessError),
        ("fatal: repository 'https://example.org/x/' not found", PreconditionError),
        ("ssh: connect to host example.org port 22: Connection refused", NetworkError),
        ("fatal: unable to access 'https://example.org/': Could not resolve host: example.org", NetworkError),
        ("fatal: unable to access 'https://example.org/': The requested URL returned error: 503", NetworkError),
        ("fatal: unable to access 'https://example.org/': The requested URL returned error: 403", AccessError),
        ("error: RPC failed; curl 92 HTTP/2 stream 5 was not closed cleanly", NetworkError),
        ("fatal: an unknown message", PreconditionError),
    ],
)
def test_gits_errors_are_distinguished(output: str, kind: type[Stage3Error]) -> None:
    error = git_failure("Cannot clone x", ChildResult(128, (), (output,), 1.0))
    assert type(error) is kind and error.what_to_do


# -- hostile content ---------------------------------------------------------------------------------------------------


def test_cloning_executes_nothing_from_the_repository(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither hooks in its .git, in a template and in HOME's configuration, nor filters that .gitattributes names."""
    canary = tmp_path / "ran"
    template = tmp_path / "template"
    for folder in (template / "hooks", upstream / ".git/hooks"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("post-checkout", "post-upload-pack", "pre-auto-gc", "reference-transaction", "post-index-change"):
            program(folder, name, f"#!/bin/sh\ntouch {canary}\n")
    (upstream / ".gitattributes").write_text("* filter=evil\n")
    git(upstream, "add", ".")
    git(upstream, "commit", "-qm", "attributes")
    (tmp_path / ".gitconfig").write_text(
        f"[init]\n\ttemplateDir = {template}\n[core]\n\thooksPath = {template}/hooks\n"
        f'[filter "evil"]\n\tsmudge = "touch {canary}; cat"\n\tclean = "touch {canary}; cat"\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    subprocess.run(["git", "clone", "-q", str(upstream), str(tmp_path / "carelessly")], check=True)
    assert canary.exists(), "the trap does not work"
    canary.unlink()
    drive(context(tmp_path, repo_url=str(upstream)))
    assert not canary.exists()
    assert not (here / "upstream/.git/hooks").exists()
    assert (here / "upstream/readme").read_text() == "second"


def test_a_symbolic_link_is_cloned_as_a_plain_file_and_stays_one(tmp_path: Path, upstream: Path, here: Path) -> None:
    drive(context(tmp_path, repo_url=str(upstream)))
    link = here / "upstream/link"
    assert link.read_text() == "/etc/passwd" and not link.is_symlink()
    link.unlink()
    git(here / "upstream", "checkout", "-q", "link")
    assert not link.is_symlink()


def test_submodules_are_not_fetched(tmp_path: Path, upstream: Path, here: Path) -> None:
    inner = make_upstream(tmp_path / "inner")
    git(upstream, "submodule", "add", "-q", str(inner), "inner")
    git(upstream, "commit", "-qm", "submodule")
    result, _ = drive(context(tmp_path, repo_url=str(upstream)))
    assert names_in(here / "upstream/inner") == set()
    assert not (here / "upstream/.git/modules").exists()
    assert result.facts["dirty"] is False


def test_git_may_only_use_the_protocol_of_the_address(tmp_path: Path, upstream: Path) -> None:
    environment = fetch_environment(Source("https://example.org/a.git", "https"))
    assert environment["GIT_ALLOW_PROTOCOL"] == "https" and "GIT_SSH_COMMAND" not in environment
    assert fetch_environment(Source("/a", "path"))["GIT_ALLOW_PROTOCOL"] == "file"


# -- ssh ---------------------------------------------------------------------------------------------------------------

FAKE_SSH = f"""#!{sys.executable} -S
# An ssh that runs every command on this host, and records how it was called.
import json, os, sys
with open(os.path.join(os.path.dirname(__file__), "called"), "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
os.execv("/bin/sh", ["sh", "-c", sys.argv[-1]])
"""


@pytest.mark.parametrize("form", ["ssh://me@example.org{path}", "me@example.org:{path}"])
def test_ssh_clones_without_prompts_and_without_forwarding_the_agent(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    program(tmp_path / "bin", "ssh", FAKE_SSH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("GIT_SSH_COMMAND", "touch pwned;")
    url = form.format(path=upstream)
    with pytest.raises(Stage3Error) as refused:
        drive(context(tmp_path, repo_url=url))
    assert refused.value.exit_code == 12 and not (tmp_path / "bin/called").exists()
    drive(context(tmp_path, repo_url=url, allow_ssh=True))
    assert (here / "upstream/readme").read_text() == "second"
    arguments, environment = json.loads((tmp_path / "bin/called").read_text())
    assert arguments[-2] == "me@example.org" and "-a" in arguments
    assert {"BatchMode=yes", "ForwardAgent=no", "ClearAllForwardings=yes"} <= set(arguments)
    assert not [argument for argument in arguments if "StrictHostKeyChecking" in argument]
    assert environment["SSH_AUTH_SOCK"] == "/run/agent" and environment["GIT_TERMINAL_PROMPT"] == "0"


# -- https -------------------------------------------------------------------------------------------------------------


class GitServer(http.server.SimpleHTTPRequestHandler):
    """Serves a repository as files over https; the first part of the path sets the behaviour."""

    def do_GET(self) -> None:
        behaviour, _, rest = self.path.lstrip("/").partition("/")
        self.server.requested.append(self.path)  # type: ignore[attr-defined]
        if behaviour == "private":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="a test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif behaviour in ("403", "404", "503"):
            self.send_error(int(behaviour))
        elif behaviour in ("to-http", "to-file", "to-https"):
            place = {
                "to-http": f"http://127.0.0.1:{self.server.server_port}/ok/",
                "to-file": "file:///",
                "to-https": "/ok/",
            }
            self.send_response(302)
            self.send_header("Location", place[behaviour] + rest)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif behaviour == "cut" and "/objects/" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 50)
            self.close_connection = True
        else:
            self.path = f"/{rest}"
            super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def https(tmp_path: Path, upstream: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve `upstream.git` with a certificate that git trusts through GIT_SSL_CAINFO, as behind a proxy."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to create the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    site = tmp_path / "site"
    git(tmp_path, "clone", "-q", "--bare", str(upstream), str(site / "upstream.git"))
    git(site / "upstream.git", "update-server-info")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: GitServer(*arguments, directory=str(site))
    )
    context_ = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context_.load_cert_chain(certificate, key)
    server.socket = context_.wrap_socket(server.socket, server_side=True)
    server.requested = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def at(server: http.server.ThreadingHTTPServer, behaviour: str) -> str:
    return f"https://127.0.0.1:{server.server_port}/{behaviour}/upstream.git"


def test_a_repository_is_cloned_over_https(
    tmp_path: Path, upstream: Path, here: Path, https: http.server.ThreadingHTTPServer
) -> None:
    result, _ = drive(context(tmp_path, repo_url=at(https, "ok")))
    assert (here / "upstream/readme").read_text() == "second"
    assert result.facts["commit"] == git(upstream, "rev-parse", "main")


def test_the_error_for_an_unknown_branch_over_https_lists_the_branches(
    tmp_path: Path, here: Path, https: http.server.ThreadingHTTPServer
) -> None:
    with pytest.raises(ConfigError, match="mian") as refused:
        drive(context(tmp_path, repo_url=at(https, "ok"), repo_ref="mian"))
    assert refused.value.exit_code == 2 and "Its branches: main." in refused.value.why
    assert names_in(here) == set()


@pytest.mark.fault("F10")
@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("private", AccessError),
        ("403", AccessError),
        ("404", PreconditionError),
        ("503", NetworkError),
        ("cut", NetworkError),
        ("to-http", Stage3Error),
        ("to-file", Stage3Error),
    ],
)
def test_server_errors_are_distinguished_and_leave_nothing(
    tmp_path: Path,
    here: Path,
    https: http.server.ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    kind: type[Stage3Error],
) -> None:
    # No program or helper may prompt for a password: the clone fails at once instead.
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.setenv(name, str(program(tmp_path / "bin", "prompt", f"#!/bin/sh\ntouch {tmp_path}/prompted\n")))
    (tmp_path / ".gitconfig").write_text(f'[credential]\n\thelper = "!touch {tmp_path}/prompted;"\n')
    with pytest.raises(kind) as refused:
        drive(context(tmp_path, repo_url=at(https, behaviour)))
    assert refused.value.exit_code in (3, 4, 5)
    assert names_in(here) == set() and not (tmp_path / "prompted").exists()


def test_a_redirect_to_another_https_address_is_followed(
    tmp_path: Path, here: Path, https: http.server.ThreadingHTTPServer
) -> None:
    drive(context(tmp_path, repo_url=at(https, "to-https")))
    assert (here / "upstream/readme").read_text() == "second"


def test_an_untrusted_certificate_is_refused(
    tmp_path: Path, here: Path, https: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIT_SSL_CAINFO")
    with pytest.raises(NetworkError):
        drive(context(tmp_path, repo_url=at(https, "ok")))


# -- large files -------------------------------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 8\n"


def with_large_file(upstream: Path) -> None:
    """Add a git-lfs file without git-lfs: attributes and a pointer, and a .lfsconfig that names another server."""
    (upstream / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (upstream / ".lfsconfig").write_text("[lfs]\n\turl = https://evil.example.org/lfs\n")
    (upstream / "big.bin").write_text(POINTER.format("ab" * 32))
    git(upstream, "add", ".")
    git(upstream, "commit", "-qm", "large file")


def test_large_files_stay_pointers_without_fetch_lfs(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_large_file(upstream)
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/lfs\nenv >> {tmp_path}/environment\n{GIT} config lfs.url >> {tmp_path}/lfs\n'
    program(tmp_path / "bin", "git-lfs", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    drive(context(tmp_path, repo_url=str(upstream)))
    assert not (tmp_path / "lfs").exists()
    assert (here / "upstream/big.bin").read_text().startswith("version https://git-lfs")
    drive(context(tmp_path / "other", repo_url=str(upstream), fresh=True, fetch_lfs=True))
    assert (tmp_path / "lfs").read_text() == f"pull\nfile://{upstream}\n"
    environment = (tmp_path / "environment").read_text()
    assert "hf_canary" not in environment and "GIT_LFS_SKIP_SMUDGE" not in environment


def test_without_git_lfs_the_error_names_how_to_install_it(
    tmp_path: Path, upstream: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "git", f'#!/bin/sh\nexec {GIT} "$@"\n')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(PreconditionError, match="git-lfs is missing") as refused:
        drive(context(tmp_path, repo_url=str(upstream), fetch_lfs=True))
    assert "apt install git-lfs" in refused.value.what_to_do and names_in(here) == set()


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="needs git-lfs")
def test_a_real_large_file_is_fetched_and_does_not_count_as_a_change(
    tmp_path: Path, upstream: Path, here: Path
) -> None:
    git(upstream, "lfs", "install", "--local")
    git(upstream, "lfs", "track", "*.bin")
    (upstream / "big.bin").write_bytes(os.urandom(100_000))
    (upstream / ".lfsconfig").write_text("[lfs]\n\turl = https://evil.example.org/lfs\n")
    git(upstream, "add", ".")
    git(upstream, "commit", "-qm", "large file")
    result, _ = drive(context(tmp_path, repo_url=str(upstream), fetch_lfs=True))
    assert (here / "upstream/big.bin").read_bytes() == (upstream / "big.bin").read_bytes()
    assert result.facts["dirty"] is False
