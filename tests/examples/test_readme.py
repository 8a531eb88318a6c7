"""examples/README.md lists every example, and each example says how far it was tested."""

from __future__ import annotations

from tests.support.example_programs import EXAMPLES

FILES = sorted(
    path for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix in ("", ".sh", ".sbatch", ".yaml")
)
FILES = [path for path in FILES if not path.name.startswith(".")]
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_every_example_has_a_row_in_the_readme():
    missing = [name for path in FILES if f"| `{(name := path.relative_to(EXAMPLES).as_posix())}` |" not in README]
    assert missing == []


def test_the_first_line_of_every_example_says_what_was_not_run():
    for path in FILES:
        first = next(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#!"))
        assert first.startswith("# ") and "never " in first.lower(), path
