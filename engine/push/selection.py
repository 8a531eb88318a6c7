"""What a push takes of an archive: the adapter as PEFT loads it from a repository, its card, the evaluation, a manifest."""

from __future__ import annotations

from collections.abc import Mapping

from engine.core import layout
from engine.packaging.archive import Archive
from engine.packaging.zip_writer import MANIFEST, manifest_bytes


def pushed_files(archive: Archive, packed: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of the repository by name, out of those of the archive. The adapter lies at the top:
    `PeftModel.from_pretrained(base, repo_id)` looks for it there. Pairs and prompts stay at home.
    """
    adapter = f"{layout.ADAPTER_DIR}/"
    files = {name.removeprefix(adapter): data for name, data in packed.items() if name.startswith(adapter)}
    if layout.EVALUATION_REPORT in packed:
        files[layout.EVALUATION_REPORT] = packed[layout.EVALUATION_REPORT]
    files[MANIFEST] = manifest_bytes(files, archive=archive.path.name, archive_sha256=archive.sha256)
    return dict(sorted(files.items()))
