"""Select what is pushed from an archive: the adapter in PEFT's layout, its card, the evaluation, a manifest."""

from __future__ import annotations

from collections.abc import Mapping

from engine.core import layout
from engine.packaging.archive import Archive
from engine.packaging.zip_writer import MANIFEST, manifest_bytes


def pushed_files(archive: Archive, packed: Mapping[str, bytes]) -> dict[str, bytes]:
    """The repository's files by name, from those of the archive. The adapter goes to the top level, where
    `PeftModel.from_pretrained(base, repo_id)` expects it. Pairs and prompts are not pushed.
    """
    adapter = f"{layout.ADAPTER_DIR}/"
    files = {name.removeprefix(adapter): data for name, data in packed.items() if name.startswith(adapter)}
    if layout.EVALUATION_REPORT in packed:
        files[layout.EVALUATION_REPORT] = packed[layout.EVALUATION_REPORT]
    files[MANIFEST] = manifest_bytes(files, archive=archive.path.name, archive_sha256=archive.sha256)
    return dict(sorted(files.items()))
