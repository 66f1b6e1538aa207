"""The table of breakages belongs to the code as it is."""

from __future__ import annotations

import pytest

from tests.mutations import ROOT, Mutation, rows


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.promise[:40]}, {row.file}")
def test_a_breakage_fits_the_code_and_names_a_test(row: Mutation):
    assert (ROOT / row.file).read_text().count(row.old) == 1
    path, _, name = row.test.partition("::")
    assert name.partition("[")[0].partition("::")[0] in (ROOT / path).read_text()
