"""The sandbox of chat templates answers as Jinja's own, and a template that remembers as one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable

import jinja2
import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rendering.conftest import LLAMA_LIKE, QWEN_LIKE
from templates.corpus import conversation
from tokentrue.errors import TemplateRenderError
from tokentrue.rendering.chat_template import ChatTemplate, RememberingTemplate

NAMES = sorted(
    {*dir(dict), *dir(list), *dir(str), "content", "role", "first", "index0", "length", "cycle", "seen"}
)
SUBJECTS = ("m", "m.deep", "m.listed", "m.content", "ns", "loop", "messages", "m.get", "absent", "7", "none")
FORMS = (
    "{{ X.NAME }}",
    "{{ X['NAME'] }}",
    "{{ X|attr('NAME') }}",
    "{{ X.NAME() }}",
    "{{ X.NAME('content') }}",
    "{{ X['NAME']('a', 'b') }}",
    "{{ X.NAME(key='b') }}",
    "{{ X.NAME.__class__ }}",
    "{{ X.NAME is defined }} {{ X['NAME'] is defined }} {{ X.NAME is callable }}",
    "{{ '%s' % X.NAME }} {{ '{0.NAME}'.format(X) }} {{ '{x[NAME]}'.format_map({'x': X}) }}",
)
AROUND = "{% set ns = namespace(seen=1) %}{% for m in messages %}BODY{{ ns.seen }}{{ m }}{% endfor %}"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("a{}0.", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
    max_leaves=4,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "items"]), "content": st.text("ab{}", max_size=3)},
    optional={
        "deep": st.dictionaries(st.sampled_from(NAMES), plain, max_size=3),
        "listed": st.lists(plain, max_size=2),
    },
)


def outcome(render: Callable[[], str]) -> str:
    """What is written, or what is told instead; without memory addresses and where a namespace is from."""
    try:
        found = render()
    except TemplateRenderError as error:
        found = repr(error.__cause__)
    except Exception as error:  # noqa: BLE001  (whatever Jinja raises is the answer)
        found = repr(error)
    return re.sub(r"0x[0-9a-f]+|[\w.]+(?=Namespace)", "", found)


@settings(deadline=None)
@given(
    message=messages,
    subject=st.sampled_from(SUBJECTS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    forms=st.lists(st.sampled_from(FORMS), min_size=1, max_size=3),
)
def test_every_attribute_key_and_call_is_answered_as_jinja_answers(
    message: dict[str, object], subject: str, names: list[str], forms: list[str]
) -> None:
    jinjas = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for name in names:
        for form in forms:
            source = AROUND.replace("BODY", form.replace("X", subject).replace("NAME", name))
            expected = outcome(lambda source=source: jinjas.from_string(source).render(messages=[message]))
            assert outcome(lambda source=source: ChatTemplate(source).render_text([message])) == expected


@pytest.mark.parametrize("source", [QWEN_LIKE, LLAMA_LIKE], ids=["qwen_like", "llama_like"])
@settings(deadline=None)
@given(seeds=st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_a_template_that_remembers_writes_the_same(source: str, seeds: list[int]) -> None:
    forgetting = ChatTemplate(source, {"bos_token": "<|bos|>"})
    remembering = RememberingTemplate.of(forgetting)
    for seed in seeds:
        asked = conversation(seed)
        for prompt in (False, True, False):
            texts = []
            for each in (forgetting, remembering):
                try:
                    texts.append(each.render_text(asked.messages, asked.tools, add_generation_prompt=prompt))
                except TemplateRenderError as error:
                    texts.append(f"refused: {error}")
            assert texts[0] == texts[1]
