"""The clients and their examples on a real vLLM: the probed route, both bridge tokenizers, and the same ids."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from servers.vllm.server import CONTEXT_LIMIT, MODEL_NAME

from tokentrue import ClientConfig, Message, Session, load_renderer, make_client, session_samples
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.errors import OverlongPromptError
from tokentrue.turns import How, Junction, Why

pytestmark = pytest.mark.vllm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOKENS = "openai_chat_completions_token"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def talk(url, texts, *, session=None, tools=None, later=None, args=None, **settings):
    """Says the texts in turn; gives the responses and the client's fallbacks."""
    config = ClientConfig(api_base_url=url + "/v1", max_retries=0, timeout=60.0, **settings)
    kept = session if session is not None else Session()

    async def about():
        found, messages = [], []
        async with await make_client(config) as client:
            for number, text in enumerate(texts):
                messages.append(Message("user", text))
                given = {"max_tokens": 40, "temperature": 0, **((later if number else None) or args or {})}
                found.append(await client.get_response(messages, MODEL_NAME, given, tools, session=kept))
                messages.append(found[-1].message)
            return found, getattr(client, "fallbacks", {})

    return asyncio.run(about())


@pytest.mark.parametrize("bridge_tokenizer", ["local", "engine"])
def test_later_turns_are_the_exact_ids_whoever_tokenizes_the_bridge(vllm, bridge_tokenizer) -> None:
    session = Session()
    found, counts = talk(
        vllm.url,
        ["What is 2 plus 3?", "And 4 plus 4?", "Thanks."],
        session=session,
        tools=[TOOL],
        args={"tool_choice": "none"},  # this server was started without a tool parser, and refuses "auto"
        client_type=TOKENS,
        renderer="embedded" if bridge_tokenizer == "local" else "none",
        bridge_tokenizer=bridge_tokenizer,
    )
    for earlier, later in itertools.pairwise(found):
        assert later.turn.stitch.how is How.BRIDGED, later.turn.stitch
        assert later.tokens.prompt_ids.starts_with(earlier.tokens.all_ids())
    assert counts == {}
    assert len(session_samples(session.turns).samples) == 1


def test_both_tokenizers_make_the_same_prompts(vllm) -> None:
    texts = ["What is 2 plus 3?", "And 4 plus 4?"]
    here, _ = talk(vllm.url, texts, client_type=TOKENS, renderer="embedded")
    there, _ = talk(vllm.url, texts, client_type=TOKENS)
    assert [r.tokens.prompt_ids for r in here] == [r.tokens.prompt_ids for r in there]
    assert [r.turn.stitch.how for r in there] == [How.ENGINE_RENDERED, How.BRIDGED]


def test_messages_render_as_the_renderer_does_and_every_turn_has_its_ids(vllm) -> None:
    renderer = load_renderer(MODEL_FOLDER)
    found, _ = talk(vllm.url, ["What is 2 plus 3?", "And 4 plus 4?"])
    assert found[0].tokens.prompt_ids == renderer.render_ids([Message("user", "What is 2 plus 3?")])
    assert [r.turn.stitch.why for r in found] == [Why.FIRST_TURN, Why.MESSAGES_ONLY]


def test_a_truncated_turn_is_extended(vllm) -> None:
    found, _ = talk(
        vllm.url, ["What is 2 plus 3?", "Go on."], args={"max_tokens": 3}, client_type=TOKENS, renderer="embedded"
    )
    assert found[1].turn.stitch.junction is Junction.CLOSE_ADDED


@pytest.mark.parametrize("client_type", [TOKENS, "openai_chat_completions"])
def test_a_long_prompt_is_an_error_and_vllm_clips_a_large_max_tokens_itself(vllm, client_type) -> None:
    given = {"client_type": client_type, "renderer": "embedded"}
    with pytest.raises(OverlongPromptError):
        talk(vllm.url, ["one " * 2 * CONTEXT_LIMIT], **given)
    found, _ = talk(vllm.url, ["hello"], args={"max_tokens": CONTEXT_LIMIT - 2}, **given)
    assert found[0].tokens is not None


@pytest.mark.parametrize("name", ["chat_vllm", "token_vllm", "renderer_vllm"])
def test_an_example_runs(vllm, name) -> None:
    done = subprocess.run(
        [sys.executable, f"{EXAMPLES / name}.py", vllm.url + "/v1", MODEL_NAME],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "turn 1: " + ("engine_rendered" if name == "chat_vllm" else "bridged") in done.stdout
