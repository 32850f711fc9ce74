"""Our renderer and the `renderers` package side by side: equal ids, or a cause with a name and who is right.

The judge is the model's own chat template, rendered by transformers. A cause is a rewriting of both texts that
makes them equal; what no cause explains is unexplained, and a failure.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

from plugged_families import FAMILIES, Family
from templates.at_hand import unpacked
from tokentrue import Message, Renderer, load_renderer
from tokentrue.errors import TemplateRenderError
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.plugged import PluggedRenderer
from tokentrue.testing.renderer_cases import Ending, RendererCase, generate_cases
from tokentrue.testing.renderer_turns import NotTried, PlayedTurn, play

STOPS = {
    "gpt-oss": ("<|return|>", "<|call|>"),
    "gemma-4": ("<turn|>", "<|tool_response>"),
    "glm-4.5": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "llama-3.1": ("<|end_of_text|>", "<|eom_id|>"),
}
"""What generation_config.json of these models says; the folders at hand have none."""
FULL, STRIPPED, CUT = "full rendering", "stop left out", "cut"
FOLLOW_UPS = ("user", "tool", "tools", "tool, user")
COLUMNS = (FULL, *FOLLOW_UPS, STRIPPED, CUT)


@dataclass(frozen=True)
class Cause:
    """One reason why ids differ: `rewrite` takes it out of a text."""

    name: str
    told: str
    rewrite: Callable[[str], str]


def _sub(pattern: str, by: str = "") -> Callable[[str], str]:
    found = re.compile(pattern, re.DOTALL)
    return lambda text: found.sub(by, text)


def _calls_as_json(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        return match[1] + json.dumps(json.loads(match[2])) + match[3]

    return re.sub(
        r"(to=functions\.\w+<\|channel\|>commentary(?: json)?<\|message\|>)(.*?)(<\|call\|>)", plain, text
    )


def _json_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _results_as_text(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        body = match[2]
        # Both sides come here, and a result may be quotes itself: all of them go, on both.
        while isinstance(value := _json_or_none(body), str) and value != body:
            body = value
        return match[1] + body + match[3]

    start = r"(functions\.\w+ to=assistant<\|channel\|>commentary<\|message\|>)"
    return re.sub(start + r"(.*?)(<\|end\|>)", plain, text, flags=re.DOTALL)


_DEEPSEEK_CALLS_END = "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
_OPEN_REASONING = (
    "What closes reasoning that was cut: ours is the white space and the marker that the template "
    "writes between "
    "reasoning and content, the package's the marker alone."
)
CAUSES: dict[str, tuple[Cause, ...]] = {
    "qwen3": (Cause("open reasoning", _OPEN_REASONING, _sub(r"^\s*</think>\s*")),),
    "deepseek-v3": (
        Cause(
            "text beside a call",
            "The template leaves the calls out where there is text beside them; the package writes both.",
            _sub(r"(?<=[^>])<｜tool▁calls▁begin｜>.*?" + _DEEPSEEK_CALLS_END, "<｜end▁of▁sentence｜>"),
        ),
        Cause(
            "end of the calls",
            "The template writes the end of the calls, and the stop, behind the second call and "
            "every later one, and "
            "not at all behind a single call; the package writes them once, behind the last.",
            lambda text: text.replace("<｜tool▁call▁end｜>" + _DEEPSEEK_CALLS_END, "<｜tool▁call▁end｜>"),
        ),
        Cause(
            "newline between calls or results",
            "The template writes a newline between calls, and between results; the package does not.",
            _sub(r"\n(?=<｜tool▁(call|output)▁begin｜>)"),
        ),
        Cause(
            "end of the results",
            "In front of a user message the template leaves out the end of the results; the package writes it.",
            lambda text: text.replace("<｜tool▁outputs▁end｜>", ""),
        ),
    ),
    "glm-4.5": (
        Cause(
            "newline between calls",
            "With text beside them, the template writes a newline between two calls; the package does not.",
            lambda text: text.replace("</tool_call>\n<tool_call>", "</tool_call><tool_call>"),
        ),
        Cause(
            "open reasoning",
            "Cut before it began to think: the package closes reasoning that was not opened; ours "
            "closes what was.",
            _sub(r"^\s*</think>\s*"),
        ),
        Cause(
            "end of text for a stop left out",
            "The package cannot be told that the engine left the stop out, and takes every message "
            "without one for cut: "
            "it ends it with `<|endoftext|>`, which the template never writes there.",
            lambda text: text.removeprefix("<|endoftext|>"),
        ),
    ),
    "gpt-oss": (
        Cause(
            "generation prompt",
            "The package makes the model think: it ends the prompt inside the analysis channel, the "
            "template in front of "
            "the channel.",
            _sub(r"<\|start\|>assistant<\|channel\|>analysis<\|message\|>$", "<|start|>assistant"),
        ),
        Cause(
            "types of parameters",
            "Arrays and objects in a tool's schema: the template writes `any[]` and `object`, "
            "openai-harmony, which the "
            "package uses, `Array<any>` and the members.",
            _sub(r"namespace functions \{.*?\} // namespace functions"),
        ),
        Cause(
            "several calls",
            "The template writes the first call of a message only, and names it in every result; the "
            "package writes them "
            "all, and each result's own.",
            lambda text: _sub(r"(?<=start\|>functions\.)\w+(?= to=assistant)", "x")(
                _sub(r"(?<=<\|call\|>)(<\|start\|>assistant to=functions\.[^|]*<\|channel\|>.*?<\|call\|>)+")(text)
            ),
        ),
        Cause(
            "stop left out",
            "Ours puts back the stop that was sampled, `<|return|>` or `<|call|>`; the package, "
            "which is not told that there "
            "was one, writes `<|end|>`.",
            _sub(r"^<\|(return|call)\|>", "<|end|>"),
        ),
        Cause(
            "cut behind a channel",
            "What was sampled ends with `<|end|>` already: the package writes another one.",
            _sub(r"^<\|end\|>"),
        ),
        Cause(
            "spelling of a call",
            "The template writes `json` behind the channel, and the arguments as Python's `json` "
            "spaces them; the package "
            "neither.",
            lambda text: _calls_as_json(text).replace("commentary json<|message|>", "commentary<|message|>"),
        ),
        Cause(
            "results in quotes",
            "The template writes a tool's result as a JSON string; the package as it is.",
            _results_as_text,
        ),
        Cause(
            "text beside a call",
            "The template writes it as analysis, the package as a final answer in front of the call.",
            _sub(
                r"<\|channel\|>(?:analysis|final)"
                r"(<\|message\|>(?:(?!<\|start\|>).)*?<\|end\|><\|start\|>assistant to=)",
                r"<|channel|>x\1",
            ),
        ),
        Cause(
            "system message",
            "The template writes two newlines behind the instructions, and nothing for an empty "
            "system message; "
            "openai-harmony trims the instructions and writes an empty developer message.",
            lambda text: _sub(r"\s*<\|end\|>(?=<\|start\|>user)", "<|end|>")(
                _sub(r"# Instructions\n\n(.*?)\s*(?=<\|end\|>|# Tools)", r"\1")(text)
            ).replace("<|start|>developer<|message|><|end|>", ""),
        ),
    ),
    "gemma4": (
        Cause("open reasoning", _OPEN_REASONING, _sub(r"^\s*<channel\|>")),
        Cause(
            "empty thought in history",
            "The package writes the empty thought of the generation prompt in front of a call in "
            "history too, as it was "
            "sampled; the template leaves it out.",
            lambda text: text.replace("<|channel>thought\n<channel|>", ""),
        ),
        Cause(
            "null in arguments",
            "The template writes Python's `None` for it, the package `null`.",
            lambda text: re.sub(r"(?<=[:\[,])None(?=[,}\]])", "null", text),
        ),
        Cause(
            "end of turn behind results",
            "Where a user message follows a tool's result at once, the template does not end the "
            "model's turn first; the "
            "package does.",
            lambda text: text.replace("<tool_response|><turn|>\n", "<tool_response|>"),
        ),
    ),
}


@dataclass
class Found:
    """What one column of one family came to.

    Args:
        refused: Whoever refused: "ours", "theirs" or "both".
        causes: How often each cause was part of a difference.
        right: Of the differences, whose ids the template has: "ours", "theirs", "both" or "neither".
    """

    equal: int = 0
    differ: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)


@dataclass
class Compared:
    """One family, compared over many conversations.

    Args:
        examples: For each cause the smallest difference that is left without the others, as (ours, theirs).
    """

    family: Family
    columns: dict[str, Found] = field(default_factory=lambda: {name: Found() for name in COLUMNS})
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sides:
    family: Family
    ours: Renderer
    theirs: PluggedRenderer
    source: str

    def template_ids(self, messages: Sequence[Message], case: RendererCase) -> list[int]:
        """What the template writes, by transformers."""
        text = render_jinja_template(
            [self.ours.form.to_templates(messages)],
            chat_template=self.source,
            tools=list(case.tools) or None,
            add_generation_prompt=True,
            **self.ours.tokenizer.special_tokens,
        )[0][0]
        return self.ours.tokenizer.encode(text)


def compare(family: Family, count: int, work: Path, seed: int = 1) -> Compared:
    """`count` conversations: the full rendering, and the bridge over the last sampled message."""
    folder = unpacked(family.folder)
    theirs = family.load(folder, work)
    stops = [info.id for text in STOPS.get(family.folder, ()) if (info := theirs.tokenizer.added_token(text))]
    ours = load_renderer(folder, stop_token_ids=stops, now=datetime.now())
    sides = _Sides(family, ours, theirs, (folder / "chat_template.jinja").read_text())
    compared = Compared(family)
    for case in generate_cases(seed, count):
        _full(sides, case, compared)
        for column, one in _bridged_cases(case):
            _bridged(sides, one, column, compared)
    return compared


def _bridged_cases(case: RendererCase) -> Iterator[tuple[str, RendererCase]]:
    results = sum(message.role == "tool" for message in case.new)
    kind = "user" if not results else "tool" if results == 1 else "tools"
    if results and case.new[-1].role == "user":
        kind = "tool, user"
    yield kind, replace(case, ending=Ending.CLEAN)
    yield STRIPPED, replace(case, ending=Ending.STRIPPED)
    yield CUT, replace(case, ending=Ending.CUT)


def _full(sides: _Sides, case: RendererCase, compared: Compared) -> None:
    messages = (*case.opening, case.said, *case.new)
    both = []
    for renderer in (sides.ours, sides.theirs):
        try:
            both.append(renderer.render_ids(messages, tools=case.tools).tolist())
        except TemplateRenderError:
            both.append(None)
    _enter(sides, compared, FULL, both, lambda: sides.template_ids(messages, case))


def _bridged(sides: _Sides, case: RendererCase, column: str, compared: Compared) -> None:
    try:
        turn = play(sides.ours, case)
    except NotTried:
        compared.columns[column].refused["both"] += 1
        return
    own = sides.ours.bridge_to_next_turn(
        turn.prompt_ids,
        turn.completion_ids,
        turn.new,
        history=turn.history,
        finish_reason=turn.finish_reason,
        tools=turn.tools,
    )
    ours = list(own.added_ids) if isinstance(own, Bridge) else None
    found = sides.theirs.plug_in.bridge_to_next_turn(
        list(turn.prompt_ids),
        list(turn.completion_ids),
        [message.to_openai() for message in turn.new],
        tools=list(turn.tools) or None,
    )
    theirs = None if found is None else found.token_ids[len(turn.known_ids) :]
    _enter(sides, compared, column, [ours, theirs], lambda: _template_tail(sides, case, turn), tail=True)


def _template_tail(sides: _Sides, case: RendererCase, turn: PlayedTurn) -> list[int]:
    return sides.template_ids((*turn.history, *turn.new), case)


def _enter(
    sides: _Sides,
    compared: Compared,
    column: str,
    both: Sequence[list[int] | None],
    template: Callable[[], list[int]],
    *,
    tail: bool = False,
) -> None:
    found, (ours, theirs) = compared.columns[column], both
    if ours is None or theirs is None:
        found.refused["both" if ours is theirs else "ours" if ours is None else "theirs"] += 1
        return
    if ours == theirs:
        found.equal += 1
        return
    found.differ += 1
    written = template()
    right = [each == written or (tail and written[len(written) - len(each) :] == each) for each in (ours, theirs)]
    found.right[
        {(True, False): "ours", (False, True): "theirs", (True, True): "both"}.get(tuple(right), "neither")
    ] += 1
    texts = [sides.ours.tokenizer.decode(each) for each in (ours, theirs)]
    causes = explain(sides.family.name, texts[0], texts[1])
    if not causes:
        found.unexplained.append(f"{texts[0]!r}\n{texts[1]!r}")
    found.causes.update(causes)
    for name in causes:
        example = _where_they_differ(*_without_others(sides.family.name, name, texts[0], texts[1]))
        known = compared.examples.get(name)
        if known is None or sum(map(len, example)) < sum(map(len, known)):
            compared.examples[name] = example


def _without_others(family: str, name: str, ours: str, theirs: str) -> tuple[str, str]:
    for cause in CAUSES[family]:
        if cause.name != name:
            ours, theirs = cause.rewrite(ours), cause.rewrite(theirs)
    return ours, theirs


def explain(family: str, ours: str, theirs: str) -> list[str]:
    """The causes without which the texts would differ; empty when they differ with all of them taken out."""
    causes = CAUSES.get(family, ())

    def differ(without: str | None = None) -> bool:
        one, other = ours, theirs
        for cause in causes:
            if cause.name != without:
                one, other = cause.rewrite(one), cause.rewrite(other)
        return one != other

    if differ():
        return []
    return [cause.name for cause in causes if differ(cause.name)]


def _where_they_differ(ours: str, theirs: str, around: int = 24) -> tuple[str, str]:
    start = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    room = min(len(ours), len(theirs)) - start
    end = next((i for i in range(room) if ours[-1 - i] != theirs[-1 - i]), room)
    begin = max(0, start - around)
    return ours[begin : len(ours) - end + around][:160], theirs[begin : len(theirs) - end + around][:160]


def families_at_hand() -> list[Family]:
    """The families that can be compared here."""
    return [family for family in FAMILIES if family.is_at_hand]
