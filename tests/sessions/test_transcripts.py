"""Laws 1, 2, 5 and 6 over real conversations of agents, with every real tokenizer at hand.

The transcripts (tau-bench, SWE-agent, mini-swe-agent, BFCL) lie beside the repository. Each assistant message is
"sampled" as the template writes it, with the model's own spelling of its arguments; the session makes every
prompt. A few conversations here, all of them in `make test-templates` (TOKENTRUE_ALL_TEMPLATES).
"""

from __future__ import annotations

import json
import lzma
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from real_tokenizers import SHARED
from templates.at_hand import FOLDERS, completion_behind, own_renderer
from tokentrue import Message, Renderer, Session
from tokentrue.errors import TemplateRenderError
from tokentrue.generation import FinishReason, Generation, make_tokens
from tokentrue.messages import messages_from
from tokentrue.sessions.stitch import StitchedPrompt
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Why

TRANSCRIPTS = SHARED / "transcripts"
ALL = "TOKENTRUE_ALL_TEMPLATES" in os.environ
NOT_BRIDGED = {
    # Neither template writes what a tool answered.
    "tinyllama": {Why.NEW_MESSAGE_DROPPED},
    "phi-3": {Why.NEW_MESSAGE_DROPPED},
    # It writes a turn's results in front of what the model said there, also when a call has text beside it.
    "gemma-4": {Why.REORDERED},
}
"""Why a real turn may not be bridged, per tokenizer; every other turn must be."""
REFUSES = {"mistral-nemo": "call ids of nine letters, and roles that alternate"}
"""Templates that refuse real conversations themselves, and what they ask for."""
pytestmark = pytest.mark.skipif(
    not TRANSCRIPTS.is_dir(), reason=f"{TRANSCRIPTS} is absent: no transcripts at hand"
)


@dataclass(frozen=True)
class Chat:
    """One real conversation."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]


def lines_of(name: str) -> list[dict[str, Any]]:
    text = lzma.decompress((TRANSCRIPTS / f"{name}.jsonl.xz").read_bytes()).decode()
    return [json.loads(line) for line in text.split("\n") if line]


@cache
def chats() -> tuple[Chat, ...]:
    """All conversations, or one of each source."""
    tau, *tau_chats = lines_of("tau_bench_airline_gpt4o")
    bfcl, *bfcl_chats = lines_of("bfcl_multi_turn_base")
    found = [("tau", row["messages"], tau["tools"]) for row in tau_chats]
    found += [
        (
            "bfcl",
            row["messages"],
            [tool for name in row["involved_classes"] for tool in bfcl["tools_by_class"][name]],
        )
        for row in bfcl_chats
    ]
    found += [("swe", row["messages"], []) for row in lines_of("swe_agent_demos")]
    found += [("mini", row["messages"], []) for row in lines_of("mini_swe_agent")]
    listed = [
        Chat(f"{source} {index}", messages_from([_plain(m) for m in messages]), tuple(tools))
        for index, (source, messages, tools) in enumerate(found)
    ]
    if ALL:
        return tuple(listed)
    firsts = {chat.name.split()[0]: chat for chat in reversed(listed)}
    return tuple(firsts.values())


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Without SWE-agent's own key; call ids in Mistral's form, nine letters and digits, which all others take."""
    data = {key: value for key, value in message.items() if key != "thought"}
    if data.get("tool_calls"):
        data["tool_calls"] = [{**call, "id": _short(call["id"])} for call in data["tool_calls"]]
    if "tool_call_id" in data:
        data["tool_call_id"] = _short(data["tool_call_id"])
    return data


def _short(call_id: str) -> str:
    return "".join(char for char in call_id if char.isalnum())[-9:].rjust(9, "0")


@dataclass
class Tally:
    """What happened over many turns.

    Args:
        kept_by_rendering: Turns whose prompt and sampled ids would begin the next prompt also if every prompt was
            rendered from its messages, as engines do.
    """

    turns: int = 0
    later: int = 0
    bridged: int = 0
    kept_by_rendering: int = 0
    whys: Counter[Why] = field(default_factory=Counter)
    junctions: Counter[Junction] = field(default_factory=Counter)
    refused_by_template: int = 0


def play(renderer: Renderer, chat: Chat, tally: Tally) -> None:
    """Every assistant message of `chat`, sampled through one session."""
    session, rendered_before = Session(), TokenIds([])
    for index, message in enumerate(chat.messages):
        if message.role != "assistant":
            continue
        asked = chat.messages[:index]
        try:
            stitched = session.stitch(renderer, asked, chat.tools)
            sampled = completion_behind(renderer, asked, message, chat.messages[index + 1 :][:1], chat.tools)
        except TemplateRenderError:
            tally.refused_by_template += 1
            return
        full = renderer.render_ids(asked, tools=chat.tools)
        check_prompt(renderer, session, stitched, full, tally)
        tally.kept_by_rendering += bool(session.turns) and full.starts_with(rendered_before)
        rendered_before = full.extended(sampled)
        check_reading(renderer, message, sampled, stitched.prompt_ids, chat)
        tokens = make_tokens(stitched.prompt_ids, sampled, [-0.5] * len(sampled))
        session.commit(stitched, Generation(tokens, FinishReason.STOP), message, FinishReason.STOP)


def check_prompt(
    renderer: Renderer, session: Session, stitched: StitchedPrompt, full: TokenIds, tally: Tally
) -> None:
    """Laws 1, 2 and 5 for one prompt."""
    tally.turns += 1
    if not session.turns:
        assert stitched.stitch.why is Why.FIRST_TURN
        return
    tally.later += 1
    tally.whys[stitched.stitch.why] += 1
    before = session.turns[-1].tokens.all_ids()
    if stitched.stitch.how is not How.BRIDGED:
        assert stitched.prompt_ids == full
        assert stitched.stitch.detail
        return
    tally.bridged += 1
    tally.junctions[stitched.stitch.junction] += 1
    assert stitched.stitch.anchor_turn == len(session.turns) - 1
    assert stitched.prompt_ids.starts_with(before)
    added = list(stitched.prompt_ids[len(before) :])
    if stitched.stitch.junction in (Junction.CLOSE_ADDED, Junction.CLOSE_RESTORED):
        added = added[1:]
    assert list(full[len(full) - len(added) :]) == added
    assert renderer.tokenizer.added_token_of_id(full[len(full) - len(added) - 1]) is not None


def check_reading(renderer: Renderer, message: Message, sampled, prompt_ids, chat: Chat) -> None:
    """Law 6 for one completion: its calls are read as they were written, where the template writes them.

    DeepSeek-V3's template leaves a call out where there is text beside it.
    """
    parsed = renderer.parse_response(sampled, prompt_ids=prompt_ids, tools=chat.tools)
    if renderer.tool_format is None:
        assert parsed.tool_calls == ()
        return
    # A name may be a word of the text as well.
    beside = renderer.tokenizer.decode(sampled).replace((message.content or "").strip(), "")
    written = [(call.name, json.loads(call.arguments)) for call in message.tool_calls if call.name in beside]
    assert written or not message.tool_calls or message.content
    assert [(call.name, json.loads(call.arguments or "null")) for call in parsed.tool_calls] == written


@pytest.mark.parametrize("folder", FOLDERS)
def test_real_conversations_keep_the_laws_turn_by_turn(folder: str) -> None:
    renderer, tally = own_renderer(folder), Tally()
    for chat in chats():
        play(renderer, chat, tally)
    assert tally.bridged + sum(tally.whys[why] for why in NOT_BRIDGED.get(folder, ())) == tally.later, tally
    assert tally.bridged > 0
    assert tally.refused_by_template == 0 or folder in REFUSES
    print(f"{folder}: {tally}")
