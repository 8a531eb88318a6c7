"""The table of mutants matches the code: each safeguard, and its tests, are where the table expects them."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_safeguard_is_where_make_mutants_removes_it(mutant: Mutant):
    code = (ROOT / mutant.file).read_text(encoding="utf-8")
    compile(mutant.mutated(code), mutant.file, "exec")
    for test in mutant.tests:
        file, _, name = test.partition("[")[0].partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).exists()
