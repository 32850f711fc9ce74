"""Every template at hand writes the text and the ids that transformers writes, over generated conversations.

Both get the same sources and the same `tokenizer.json`; transformers renders and encodes with its own machinery.
50 conversations per template here, 1,000 in `make test-templates` (TOKENTRUE_CONVERSATIONS).
"""

from __future__ import annotations

import os

import pytest

from templates.at_hand import Template, templates_at_hand
from templates.transformers_oracle import count_equal, form_of, is_written_in_the_form_found, pair_for
from tokentrue.rendering.template_messages import EmptyContent

CONVERSATIONS = int(os.environ.get("TOKENTRUE_CONVERSATIONS", "50"))
TEMPLATES = sorted(templates_at_hand(), key=lambda template: template.folder)
NULL_CONTENT = {"deepseek-v3", "lenml/deepseek_v3", "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B"}
"""Templates that write calls only when `content` is null. `apply_chat_template` drops every key that is None
before the template sees it, so that under it these templates write no call at all; engines keep the key. The
oracle for them is transformers' own renderer without that step."""
NEVER_WRITTEN = {"huggingface.js/fireworks-ai__firefunction-v1"}
"""It raises unless the second message has the role `functions`, which OpenAI's chat shape does not have."""
pytestmark = pytest.mark.skipif(not TEMPLATES, reason="../shared/tokenizers is absent: no real templates at hand")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_text_and_ids_equal_transformers(template: Template) -> None:
    assert (form_of(template).empty_content is EmptyContent.NULL) == (template.name in NULL_CONTENT)
    written = count_equal(template, pair_for(template, TEMPLATES), CONVERSATIONS)
    assert (written == 0) if template.name in NEVER_WRITTEN else (written >= 0.4 * CONVERSATIONS)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_calls_are_handed_over_in_a_form_that_the_template_writes(template: Template) -> None:
    assert is_written_in_the_form_found(template)
