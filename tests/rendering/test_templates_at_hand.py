"""Every real template at hand: no bridge is wrong, and what is read is what was written.

The short suite takes a few templates, one per mechanism; `make test-templates` takes all of them, and many
more messages each (TOKENTRUE_EXAMPLES).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from templates.spoken import TYPED_TOOLS
from tokentrue import Renderer
from tokentrue.errors import TemplateRenderError
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.reader import response_of

ALL = "TOKENTRUE_ALL_TEMPLATES" in os.environ
MESSAGES = int(os.environ.get("TOKENTRUE_EXAMPLES", "12"))
FEW = (
    "mistral-nemo",
    "glm-4.5",
    "gpt-oss",
    "huggingface.js/deepseek-ai__DeepSeek-R1",
    "huggingface.js/meetkai__functionary-medium-v2.2",
    "llama.cpp/meetkai-functionary-medium-v3.2",
    "onnxruntime-extensions/gpt-oss",
    "rtp-llm/tool_chat_template_deepseekv31",
)
TEMPLATES = [template for template in templates_at_hand() if ALL or template.name in FEW]
needs_data = pytest.mark.skipif(not TEMPLATES, reason="../shared/tokenizers is absent: no real templates at hand")


@pytest.fixture(scope="module", params=TEMPLATES or [None], ids=lambda t: t.name if t else "none")
def template(request: pytest.FixtureRequest) -> Template:
    found: Template = request.param
    return found


@pytest.fixture(scope="module")
def real(template: Template) -> Renderer:
    return renderer_for(template)


@needs_data
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_bridge_is_wrong(real: Renderer, scenario) -> None:
    outcome, evidence = judge_bridge(real, scenario)
    assert outcome is not BridgeOutcome.WRONG, evidence
    assert outcome is BridgeOutcome.RIGHT or evidence


@needs_data
def test_law_6_holds_in_the_form_that_the_template_keeps(real: Renderer) -> None:
    assert judge_inverse(real, seed=7, count=MESSAGES).wrong == ()


@needs_data
@settings(max_examples=MESSAGES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_anywhere_and_fed_in_any_pieces(real: Renderer, data: st.DataObject) -> None:
    (message,) = random_messages(real, data.draw(st.integers(0, 2**32)), 1)
    try:
        prompt, ids = completion(real, message)
    except TemplateRenderError:
        return
    # The prompt may be shorter than the generation prompt, which history does not always show.
    tail = prompt[-16:]
    whole = real.reader.parse(ids, prompt_tail=tail, tools=TYPED_TOOLS)
    cut = ids[: data.draw(st.integers(0, len(ids)))]
    parsed = real.reader.parse(cut, prompt_tail=tail, tools=TYPED_TOOLS)
    for call, known in zip(parsed.tool_calls, whole.tool_calls, strict=False):
        if call.status is CallStatus.OK:
            assert (call.name, call.arguments) == (known.name, known.arguments)
        else:
            assert call.arguments is None
    reader = real.reader.start(prompt_tail=tail, tools=TYPED_TOOLS)
    size = data.draw(st.integers(1, 9))
    deltas = [delta for at in range(0, len(cut), size) for delta in reader.feed(cut[at : at + size])]
    assert response_of([*deltas, *reader.finish()], reader) == parsed
