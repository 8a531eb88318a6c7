"""The README is short and correct; docs/ has the rest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from engine.core import layout
from engine.core.errors import ExitCode
from engine.core.layout import ADAPTER_DIR, CACHE_DIR, CHECKPOINTS_DIR
from tests.conftest import needs_shared_data

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_readme_can_be_read_in_a_few_minutes():
    assert len(README.split()) < 1200


def test_the_readme_links_to_every_page():
    not_for_users = {"tour.md", "decisions.md", "index.md"}  # CONTRIBUTING links there; index belongs to the site
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - not_for_users
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", README)) | set(re.findall(r"\]\(([\w-]+\.md)", _all_pages()))
    assert sorted(pages - linked) == []


def _all_pages() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))


def test_no_link_between_pages_is_broken():
    broken = []
    for source in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", source.read_text(encoding="utf-8")):
            if "://" not in target and not (source.parent / target).exists():
                broken.append(f"{source.name}: {target}")
    assert broken == []


def test_the_tables_in_the_documentation_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, "run `PYTHONPATH=. python docs/tables.py`"


def test_every_file_of_a_run_is_explained():
    text = page("run-folder.md")
    files = [getattr(layout, name) for name in vars(layout) if name.endswith(("_JSON", "_JSONL", "_REPORT", "_LOG"))]
    missing = [file for file in [*files, ADAPTER_DIR, CHECKPOINTS_DIR, CACHE_DIR] if file not in text]
    assert missing == []


def test_every_exit_code_has_its_row():
    rows = re.findall(r"^\| (\d+) \| \S", page("troubleshooting.md"), re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(map(int, ExitCode))


def test_every_picture_exists_and_shows_no_local_path():
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pictures = [
        document.parent / target
        for document in documents
        for target in re.findall(r"^!\[.*?\]\((.+?)\)", document.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(pictures) >= 5
    for picture in pictures:
        svg = picture.read_text(encoding="utf-8")
        assert "/tmp" not in svg and "/root" not in svg and "/home" not in svg


def test_the_figures_of_the_notebooks_pairs_are_those_that_validate_prints():
    pairs = needs_shared_data("gemma-2b-it-pairs.jsonl")
    command = [sys.executable, "-m", "tui.cli", "validate", str(pairs)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == ExitCode.DATA, done.stderr
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    shown = README.split("`stage3-tui validate` on that file prints:\n\n```\n")[1].split("```")[0].splitlines()
    assert len(shown) > 5
    assert [line for line in shown if line != "…" and line not in printed] == []
