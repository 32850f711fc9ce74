"""Ours and the `renderers` package write equal ids, or differ for a named cause; then the template has ours."""

from __future__ import annotations

import os

import pytest

from plugged_families import FAMILIES, Family
from real_tokenizers import SHARED
from tokentrue.errors import SpelledMarkerWarning

pytest.importorskip(
    "renderers", reason="the renderers package is not installed: pip install 'tokentrue[renderers]'"
)

COUNT = int(os.environ.get("TOKENTRUE_CONVERSATIONS", "20"))


@pytest.mark.filterwarnings(f"ignore::{SpelledMarkerWarning.__module__}.{SpelledMarkerWarning.__name__}")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_difference_has_a_cause_and_the_template_has_our_ids(family: Family, tmp_path) -> None:
    if not family.is_at_hand:
        pytest.skip(f"the real tokenizer {family.folder} is not at hand ({SHARED / family.folder} is absent)")
    from plugged_oracle import CUT, FOLLOW_UPS, FULL, STRIPPED, compare

    compared = compare(family, COUNT, tmp_path)
    for name, found in compared.columns.items():
        assert not found.unexplained, (name, found.unexplained[0])
        if name not in (STRIPPED, CUT):  # what ends a message that was cut is in no template
            assert set(found.right) <= {"ours"}, name
    assert compared.columns[FULL].equal + compared.columns[FULL].differ > COUNT // 3
    bridged = sum(compared.columns[name].equal + compared.columns[name].differ for name in FOLLOW_UPS)
    assert bridged > COUNT // 3
    if family.name in ("qwen3", "llama-3"):
        assert compared.columns[FULL].differ == 0
