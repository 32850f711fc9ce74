"""A generated turn on one renderer: prompt, completion, and the tail that a bridge must add, by rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokentrue.errors import TemplateRenderError
from tokentrue.generation import FinishReason
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.contract import RendererContract
from tokentrue.testing.renderer_cases import Ending, RendererCase

_WORDS = ("qz", "7")
"""Texts put in place of the sampled one; they end in different tokens whatever the vocabulary."""
_SHAPES = (
    Message(role="assistant", content="qz"),
    Message(role="assistant", content="qz", reasoning_content="qz"),
    Message(role="assistant", tool_calls=(ToolCall("look_up", "{}", "call00000"),)),
)
"""What else a model could have said: where these differ from the generation prompt, a model may do so."""


class NotTried(Exception):
    """There is nothing to check here, for a reason that is no fault."""


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """One turn, ready to be bridged.

    Args:
        stop_id: The stop that the renderer's own writing ends the message with.
        close_id: What a full rendering has in front of `tail_ids`; the stop itself, or what it is rewritten to.
        tail_ids: Law 2: what a bridge adds behind the close.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    finish_reason: FinishReason
    history: tuple[Message, ...]
    new: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    stop_id: int
    close_id: int
    tail_ids: list[int]

    @property
    def known_ids(self) -> list[int]:
        """What law 1 speaks of."""
        return [*self.prompt_ids, *self.completion_ids]


def ids_of(
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of messages.

    Raises:
        NotTried: The renderer refuses them.
    """
    try:
        return renderer.render_ids(messages, tools=tools, add_generation_prompt=add_generation_prompt).tolist()
    except TemplateRenderError as exc:
        raise NotTried("the renderer refuses these messages") from exc


def written_by(renderer: RendererContract, case: RendererCase) -> tuple[list[int], list[int]]:
    """The prompt and the ids behind it that write `case.said`, up to its stop, where there is one.

    A generation prompt that is no part of history is left out as far as histories do without it. A stop behind
    that of the message ends the conversation (phi-3's end of text), where nothing of the message is in between.

    Raises:
        NotTried: The renderer refuses the messages, or writes several stops into one message.
    """
    prompt = ids_of(renderer, case.opening, case.tools)
    whole = ids_of(renderer, (*case.opening, case.said), case.tools, add_generation_prompt=False)
    same = _same_length(prompt, whole)
    if same < len(prompt):
        same = min(same, *(_kept_of(renderer, prompt, case, other) for other in _SHAPES))
    ids = whole[same:]
    stops = [at for at, each in enumerate(ids) if each in renderer.get_stop_token_ids()]
    if not ids:
        raise NotTried("the renderer writes nothing for the sampled message")
    if len(stops) > 1 and len(_ended(renderer, case)) < len(ids) - stops[0]:
        raise NotTried("the renderer writes several stops into one message")
    return prompt[:same], ids[: stops[0] + 1] if stops else ids


def _ended(renderer: RendererContract, case: RendererCase) -> list[int]:
    """What a conversation that ends with the sampled message has behind its last text."""
    said = [(*case.opening, in_word(case.said, word)) for word in _WORDS]
    one, other = [ids_of(renderer, each, case.tools, add_generation_prompt=False) for each in said]
    return shared_end(one, other)


def _kept_of(renderer: RendererContract, prompt: list[int], case: RendererCase, said: Message) -> int:
    try:
        other = ids_of(renderer, (*case.opening, said), case.tools, add_generation_prompt=False)
    except NotTried:
        return len(prompt)
    return _same_length(prompt, other)


def _same_length(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def play(renderer: RendererContract, case: RendererCase) -> PlayedTurn:
    """The turn that `case` describes.

    Raises:
        NotTried: It cannot be played on this renderer.
    """
    prompt, written = written_by(renderer, case)
    stops = renderer.get_stop_token_ids()
    shared = _behind_said(renderer, case)
    stop = next((each for each in (*written[-1:], *shared) if each in stops), None)
    if stop is None:
        raise NotTried("no stop id ends what the renderer writes")
    body = written[:-1] if written[-1] == stop else written
    completion, finish_reason = [*body, stop], FinishReason.STOP
    if case.ending is Ending.STRIPPED:
        completion = body
    if case.ending is Ending.OTHER_STOP:
        others = [each for each in stops if each != stop]
        if not others:
            raise NotTried("there is one stop id only")
        completion = [*body, others[0]]
    if case.ending is Ending.CUT:
        completion, finish_reason = body[: max(1, int(case.cut * len(body)))], FinishReason.LENGTH
        said = renderer.parse_response(completion, prompt, case.tools).to_message()
        asked = tuple(each for each in case.new if each.role == "user") or (Message(role="user", content="?"),)
        case = replace(case, said=replace(said, tool_calls=()), new=asked)
        shared = _behind_said(renderer, case)
    at = shared.index(stop) if stop in shared else 0
    history = (*case.opening, case.said)
    close, tail = shared[at], shared[at + 1 :]
    full = ids_of(renderer, (*history, *case.new), case.tools)
    if full[len(full) - len(tail) - 1 :] != [close, *tail]:
        raise NotTried("what follows the message depends on its text")
    return PlayedTurn(prompt, completion, finish_reason, history, case.new, case.tools, stop, close, tail)


def _behind_said(renderer: RendererContract, case: RendererCase) -> list[int]:
    """What the full rendering has behind the sampled message, from its close on."""
    one, other = [
        ids_of(renderer, (*case.opening, in_word(case.said, word), *case.new), case.tools) for word in _WORDS
    ]
    shared = shared_end(one, other)
    said_ends = len(one) - len(shared)
    if said_ends == 0 or not shared:
        raise NotTried("the renderer leaves the sampled message out")
    new = tuple(replace(each, content="qzNew") for each in case.new)
    asked = ids_of(renderer, (*case.opening, in_word(case.said, _WORDS[0]), *new), case.tools)
    if _same_length(one, asked) < said_ends:
        raise NotTried("the renderer writes the sampled message behind the new ones")
    return shared


def in_word(said: Message, word: str) -> Message:
    """The message with `word` for every text that it has; as content where it has none and calls nothing."""
    calls = tuple(replace(call, arguments=f'{{"s": "{word}"}}') for call in said.tool_calls)
    content = word if said.content or not calls else said.content
    thought = word if said.reasoning_content else said.reasoning_content
    return replace(said, content=content, reasoning_content=thought, tool_calls=calls)


def shared_end(one: list[int], other: list[int]) -> list[int]:
    """The longest list that both end with."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return one[len(one) - length :]
