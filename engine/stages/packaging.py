"""Stage 10: one archive that loads, and the lines that bring it home."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
from typing import Any

from engine import names
from engine.dpo.card import load_lines
from engine.events import Check, Message
from engine.files import sha256_of_file
from engine.models.memory import free_memory
from engine.packaging import build_archive, load_in_fresh_process, packed_names
from engine.stages.base import Context, StageResult, StageRun
from engine.stages.training import base_name

NAME = "packaging"
OUTPUTS: tuple[str, ...] = ()


def depends_on(context: Context) -> dict[str, Any] | None:
    run = context.run
    done_but_gone = run.stage(NAME).get("status") == "done" and not run.archive.is_file()
    packed = [name for name in packed_names(run) if name != names.RUN_JSON]
    return {
        "training": run.result("training"),
        "files": {name: sha256_of_file(run / name) for name in packed if (run / name).is_file()},
        # An archive that was moved or deleted is made again; its bytes come out the same.
        **({"archive": "gone"} if done_but_gone else {}),
    }


def run(context: Context) -> StageRun:
    folder, config = context.run, context.config
    trained, stage2 = folder.result("training"), folder.result("adapter")
    effects: list[float] = []
    free_memory()  # the process that loads the archive needs room on the same device
    yield Message("info", "Packing, then loading the archive in a fresh process.", NAME)
    archive = build_archive(
        folder,
        check=lambda part: effects.append(load_in_fresh_process(part, config, trained.get("tensors_sha256"))),
    )
    for name in archive.left_out:
        yield Check(NAME, name, "warning", "not on the list of what is packed; left out")
    yield Check(NAME, "archive", "ok", str(archive.path))
    yield Check(NAME, "size", "ok", f"{archive.bytes:,} bytes, {archive.files} files")
    yield Check(NAME, "sha256", "ok", archive.sha256)
    yield Check(NAME, "loads", "ok", f"in a fresh process; the adapter changes a logit by up to {effects[0]:.4g}")
    here = shlex.quote(str(archive.path))
    there = f"{_user()}@{_host()}"
    yield Check(NAME, "bring it home", "ok", f"scp {there}:{here} {there}:{here}.sha256 .")
    file = shlex.quote(archive.path.name)
    yield Check(NAME, "check and unpack", "ok", f"sha256sum -c {file}.sha256 && unzip {file}")
    adapter = f"{folder.folder.name}/{names.ADAPTER_DIR}"
    loads = load_lines(base_name(context), stage2.get("base_model_commit"), adapter)
    for name, line in zip(("load the base", "load the adapter"), loads, strict=True):
        yield Check(NAME, name, "ok", line)
    return StageResult(
        f"{archive.path.name}: {archive.bytes:,} bytes, {archive.files} files",
        {"archive": str(archive.path), "sha256": archive.sha256, "bytes": archive.bytes, "files": archive.files},
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "USER"


def _host() -> str:
    """The address by which people reached this machine, where they came by SSH; else its name."""
    connection = os.environ.get("SSH_CONNECTION", "").split()  # client address and port, server address and port
    host = connection[2] if len(connection) == 4 else socket.gethostname()
    return f"[{host}]" if ":" in host else host
