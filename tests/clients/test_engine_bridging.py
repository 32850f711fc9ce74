"""A bridge by the engine's `/tokenize` is what the template writes for this very conversation, or none is made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from rendering_folders import write_folder
from tokentrue import Message, Renderer, Session, ToolCall, load_renderer
from tokentrue.clients.bridging import Conversation, EngineBridging
from tokentrue.generation import FinishReason, Generation, Usage, make_tokens
from tokentrue.sessions.stitch import NotExtended, StitchedPrompt, engine_rendered
from tokentrue.tokens import TokenIds
from tokentrue.transports.transport import HttpCall, HttpReply
from tokentrue.turns import Why

T = TypeVar("T")

_ASKS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
_CALL = "<tool_call>{{- c.function.name + (c.function.arguments | tojson) }}</tool_call>"
PLAIN = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- for c in m.tool_calls or [] %}" + _CALL + "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}" + _ASKS
)
OPENERS = (
    "{%- for m in messages %}{{- {'user': '<|im_end|>', 'assistant': '<|im_mid|>', 'system': '<|bos|>'}[m.role] }}"
    "{{- m.content }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_mid|>' }}{%- endif %}"
)
"""Nothing closes a message: the next role's opener is the stop, as in GLM; a system message's is none."""
RESULT_FIRST = (
    "{%- for m in messages %}{%- if m.role != 'tool' %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- for c in m.tool_calls or [] %}" + _CALL + "{{- '<tool_response>' + messages[loop.index].content }}"
    "{%- endfor %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + _ASKS
).replace("messages[loop.index]", "(messages | selectattr('role', 'equalto', 'tool') | list)[0]")
"""The result of a call stands in front of the text beside the call, as in Gemma 4."""
NO_TOOLS = PLAIN.replace("{{- '<|im_start|>'", "{%- if m.role != 'tool' %}{{- '<|im_start|>'").replace(
    "{{- '<|im_end|>\\n' }}{%- endfor %}", "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
)
READS = PLAIN.replace(
    "m.role + '\\n'",
    "m.role + (' so' if loop.index0 > 1 and 'DONE' in messages[loop.index0 - 1].content else '') + '\\n'",
)
"""It looks at the words of the message before."""
ASKS_FOR_TEXT = PLAIN.replace(
    "{{- '<|im_end|>\\n' }}", "{{- ('<|im_end|>' if m.content else '<|im_end|><|im_mid|>') + '\\n' }}"
)
"""It ends a message that only calls otherwise than one with text."""

HI, HO = Message(role="user", content="Hi."), Message(role="assistant", content="Ho.")
NEXT, RULE = Message(role="user", content="Well. And now?"), Message(role="system", content="Be brief.")
CALLS = Message(role="assistant", tool_calls=(ToolCall("look_up", '{"word": "tea"}', "c1"),))
BOTH = Message(role="assistant", content="I look.", tool_calls=CALLS.tool_calls)
RESULT = Message(role="tool", content="a drink", tool_call_id="c1")


class Tokenizes:
    """An engine of which only `/tokenize` is asked: it renders what is in the bytes of the request."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        body = json.loads(call.body)
        ids = self.renderer.render_ids(body["messages"], tools=body.get("tools")).tolist()
        return read(HttpReply(200, {}, json.dumps({"tokens": ids, "count": len(ids)}).encode()))


class Says:
    """An engine that tells given ids: for the conversation; with other sampled words; with another new text."""

    def __init__(self, real: list[int], said_otherwise: list[int], new_otherwise: list[int]) -> None:
        self.told = (real, said_otherwise, new_otherwise)
        self.under_way = self.most_under_way = 0

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            texts = [message["content"] for message in json.loads(call.body)["messages"][1:]]
            which = 0 if texts == ["Ho.", "And you?"] else 1 if texts[1] == "And you?" else 2
            await asyncio.sleep(0)
            return read(HttpReply(200, {}, json.dumps({"tokens": self.told[which]}).encode()))
        finally:
            self.under_way -= 1


def told(server: Says) -> StitchedPrompt | NotExtended:
    """What becomes of a second turn whose first one sampled 2 and 3 behind 1."""
    session, bridging = Session(), EngineBridging(server)
    hashes = session.hashes_of(bridging.template_hash(Conversation("m", (HI,), (), {}, {})), (HI,))
    tokens = make_tokens(TokenIds([1]), [2, 3], [-0.5] * 2)
    generation = Generation(tokens, FinishReason.STOP, stop_reason=3, usage=Usage(1, 2, None))
    session.commit(engine_rendered(hashes, TokenIds([1]), Why.FIRST_TURN, ""), generation, HO, FinishReason.STOP)
    asked = Conversation("m", (HI, HO, Message(role="user", content="And you?")), (), {}, {})

    async def extending() -> StitchedPrompt | NotExtended:
        found = await bridging.extend(session, asked)
        assert not server.under_way, "nothing is asked any more"
        return found

    return asyncio.run(extending())


@pytest.mark.parametrize(
    ("real", "said_otherwise", "why"),
    [
        ([1, 2, 3], [1, 2, 3], Why.ASSISTANT_DROPPED),
        ([1, 2, 7, 4], [1, 5, 7, 4], Why.NO_ATOMIC_CLOSE),
        ([1, 2, 3], [-1], Why.TOKENIZE_FAILED),
    ],
)
def test_a_rendered_history_that_proves_no_bridge_is_a_reason(
    real: list[int], said_otherwise: list[int], why: Why
) -> None:
    found = told(Says(real, said_otherwise, [*real[:-1], 99]))
    assert isinstance(found, NotExtended)
    assert found.why is why


def test_all_questions_of_a_bridge_are_asked_at_once() -> None:
    """A turn waits for one round trip, however many messages are new."""
    server = Says([1, 2, 3, 7, 8, 9], [1, 5, 3, 7, 8, 9], [1, 2, 3, 7, 6, 9])
    found = told(server)
    assert isinstance(found, StitchedPrompt)
    assert found.prompt_ids.tolist() == [1, 2, 3, 7, 8, 9]
    assert server.most_under_way == 3


def extended(
    renderer: Renderer, said: Message, ids: Sequence[int], *new: Message, stop: int | None = None
) -> StitchedPrompt | NotExtended:
    """What becomes of `new` behind `ids`, which say `said`; a bridge is held against the full rendering."""
    session, bridging = Session(), EngineBridging(Tokenizes(renderer))
    asked = Conversation("m", (HI,), (), {}, {})
    prompt = renderer.render_ids(asked.messages)
    hashes = session.hashes_of(bridging.template_hash(asked), asked.messages)
    stitched = engine_rendered(hashes, prompt, Why.FIRST_TURN, "")
    tokens = make_tokens(prompt, ids, [-0.5] * len(ids))
    generation = Generation(tokens, FinishReason.STOP, stop_reason=stop, usage=Usage(len(prompt), len(ids), None))
    session.commit(stitched, generation, said, FinishReason.STOP)
    whole = (HI, said, *new)
    found = asyncio.run(bridging.extend(session, Conversation("m", whole, (), {}, {})))
    if isinstance(found, StitchedPrompt):
        assert found.prompt_ids.tolist() == renderer.render_ids(whole).tolist()
    return found


def sampled(renderer: Renderer, said: Message) -> list[int]:
    """What a model samples that writes as the template does."""
    return renderer.render_assistant(said).tolist()


def sampled_plainly(renderer: Renderer, text: str) -> list[int]:
    """A text and the stop."""
    return [*renderer.tokenizer.encode(text), renderer.stop_ids[0]]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Renderer]:
    return lambda template: load_renderer(write_folder(tmp_path, template))


@pytest.mark.parametrize(
    ("template", "said", "new"),
    [
        (PLAIN, HO, (NEXT,)),
        (PLAIN, HO, (RULE, NEXT)),
        (PLAIN, CALLS, (RESULT,)),
        (PLAIN, BOTH, (RESULT, NEXT)),
        (PLAIN, Message(role="assistant", content="It is 7"), (NEXT,)),
        (PLAIN, Message(role="assistant", content="qz"), (Message(role="user", content="qz"),)),
        (READS, HO, (NEXT,)),
        (ASKS_FOR_TEXT, CALLS, (RESULT,)),
        (ASKS_FOR_TEXT, BOTH, (RESULT,)),
        (OPENERS, HO, (NEXT,)),
    ],
)
def test_the_bridge_is_what_the_template_writes_for_these_words(load, template, said, new) -> None:
    renderer = load(template)
    ids = sampled_plainly(renderer, "Ho.") if said is HO else sampled(renderer, said)
    assert isinstance(extended(renderer, said, ids, *new), StitchedPrompt)


def test_what_the_sampled_words_change_behind_their_close_is_not_bridged(load) -> None:
    renderer = load(READS)
    done = Message(role="assistant", content="DONE")
    refused = extended(renderer, done, sampled_plainly(renderer, "DONE"), NEXT)
    assert isinstance(refused, NotExtended)
    assert refused.why is Why.NO_ATOMIC_CLOSE


@pytest.mark.parametrize("stop", [".", "\n"])
def test_a_stop_id_of_the_callers_is_not_how_the_template_closes(load, stop) -> None:
    """The very id stands in what the template writes further on, in the new question or behind the close."""
    renderer = load(PLAIN)
    ids = renderer.tokenizer.encode(f"Ho{stop}")
    refused = extended(renderer, Message(role="assistant", content=f"Ho{stop}"), ids, NEXT, stop=ids[-1])
    assert isinstance(refused, NotExtended)
    assert refused.why is Why.NO_ATOMIC_CLOSE


def test_a_completion_without_ids_is_not_closed(load) -> None:
    refused = extended(load(PLAIN), Message(role="assistant"), [], NEXT)
    assert isinstance(refused, NotExtended)
    assert refused.why is Why.NO_ATOMIC_CLOSE


def test_a_new_message_between_the_sampled_one_and_its_stop_is_not_lost(load) -> None:
    renderer = load(OPENERS)
    refused = extended(renderer, HO, sampled_plainly(renderer, "Ho."), RULE, NEXT)
    assert isinstance(refused, NotExtended)
    assert refused.why is Why.NO_ATOMIC_CLOSE


def test_a_result_that_is_written_in_front_of_the_text_is_not_lost(load) -> None:
    renderer = load(RESULT_FIRST)
    ids = sampled_plainly(renderer, '<tool_call>look_up{"word": "tea"}</tool_call>I look.')
    refused = extended(renderer, BOTH, ids, RESULT)
    assert isinstance(refused, NotExtended)
    assert refused.why is Why.REORDERED


@pytest.mark.parametrize("new", [(RESULT,), (RESULT, NEXT)])
def test_a_new_message_that_the_engine_does_not_render_is_told(load, new) -> None:
    renderer = load(NO_TOOLS)
    refused = extended(renderer, CALLS, sampled(renderer, CALLS), *new)
    assert isinstance(refused, NotExtended)
    assert refused.why is Why.NEW_MESSAGE_DROPPED
    assert "message 2" in refused.detail
