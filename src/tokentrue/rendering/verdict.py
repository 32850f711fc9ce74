"""The verdict on a bridge: whether the template, asked now, writes what was kept, and where it does not (pure).

A bridge keeps what was sampled (law 1), so a prompt may differ from the template's full text in two ways,
told apart by what the template itself wrote when the message was sampled:

- `sampled_diverges`: the template never wrote what the model did (it respaces the JSON of a call, it trims).
- `history_rewrite`: the template wrote it then and writes it otherwise now: old reasoning is cut, an empty
  block of reasoning in the generation prompt is not repeated, tools move, an engine's prompt has another date.

Judging renders the conversation in full three times or more, which costs what the conversation costs; law 8
does not hold for it; a splice behind it takes up to six renderings more. So nothing is judged unless it is asked
for, or a policy other than `extend` is set.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tokentrue.errors import ConfigError, TemplateRenderError, UnsupportedParameterError
from tokentrue.messages import Message
from tokentrue.rendering.contract import RendererContract, TellsText
from tokentrue.rendering.glue import common_length
from tokentrue.tokens import TokenIds

_SHOWN = 80
"""How many characters of a differing text are kept."""


class OnRewrite(Enum):
    """What becomes of a turn whose history the template would now write otherwise (DESIGN, policy)."""

    EXTEND = "extend"
    SPLICE = "splice"
    RERENDER = "rerender"
    REFUSE = "refuse"

    @classmethod
    def named(cls, name: str) -> OnRewrite:
        """The policy of that name.

        Raises:
            ConfigError: There is none.
        """
        try:
            return cls(name)
        except ValueError:
            allowed = ", ".join(repr(policy.value) for policy in cls)
            raise ConfigError(f"on_rewrite={name!r} is wrong; allowed is one of {allowed}") from None


class VerdictKind(Enum):
    """How a prompt that was extended compares with the template's full text."""

    EXACT = "exact"
    SAMPLED_DIVERGES = "sampled_diverges"
    HISTORY_REWRITE = "history_rewrite"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Args:
        message: Index of the first message that differs; None when it belongs to none (the head of a prompt), or
            when the writers of this rendering are not known.
        ours: What the prompt has there, from the first differing character on, shortened; "" when they are equal.
        template: What the template writes there now.
    """

    kind: VerdictKind
    message: int | None = None
    ours: str = ""
    template: str = ""

    def __str__(self) -> str:
        if self.kind is VerdictKind.EXACT:
            return "the prompt is what the template writes"
        where = f"message {self.message}" if self.message is not None else "no single message"
        return f"{where}: the prompt has {self.ours!r} where the template now writes {self.template!r}"


@dataclass(frozen=True, slots=True)
class SampledStep:
    """One sampled message of the prompt that is judged.

    Args:
        message: Its index.
        completion_ids: Its ids.
        prompt_ids: The prompt that it answered, where that was rendered and not bridged; else None.
    """

    message: int
    completion_ids: TokenIds
    prompt_ids: TokenIds | None


def judge(
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...],
    prompt_ids: TokenIds,
    steps: Sequence[SampledStep],
) -> Verdict:
    """The verdict on `prompt_ids`, a bridged prompt for `messages`.

    Args:
        steps: The sampled messages along the bridges, first to last, from the rendered prompt that began them,
            or from the last turn that was judged and was no rewrite: the template's prompts up to there begin
            with each other, so what was unchanged then is unchanged now where that turn's own prompt is.

    Raises:
        TemplateRenderError: The template refuses the messages.
        UnsupportedParameterError: A plugged-in renderer does not tell what its ids spell.
    """
    if not isinstance(renderer, TellsText):
        raise UnsupportedParameterError(
            "on_rewrite", type(renderer).__name__, "it has no method text_of(ids); leave it at 'extend'"
        )
    now_ids = renderer.render_ids(messages, tools=tools)
    if now_ids == prompt_ids:
        return Verdict(VerdictKind.EXACT)
    ours, now = renderer.text_of(prompt_ids), renderer.text_of(now_ids)
    if ours == now:
        return Verdict(VerdictKind.EXACT)
    differs_at = common_length(ours, now)
    case = _Case(renderer, renderer.text_of, tuple(messages), tools, now, differs_at)
    for step in steps:
        found = case.rewrite_at(step)
        if found is not None:
            return case.told(VerdictKind.HISTORY_REWRITE, now_ids, *found)
    return case.told(VerdictKind.SAMPLED_DIVERGES, now_ids, differs_at, ours, differs_at)


@dataclass(frozen=True, slots=True)
class _Case:
    renderer: RendererContract
    text_of: Callable[[TokenIds], str]
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    now: str
    differs_at: int

    def rewrite_at(self, step: SampledStep) -> tuple[int, str, int] | None:
        """Where the text of now leaves what the template wrote for `step`; that text, and the place in it."""
        history = self.messages[: step.message]
        prompt = self.text_of(
            step.prompt_ids if step.prompt_ids is not None else self.renderer.render_ids(history, tools=self.tools)
        )
        if not self.now.startswith(prompt):
            at = common_length(prompt, self.now)
            # Where ours goes on as the template does now, ours never had what the template dropped.
            return (at, prompt, at) if self.differs_at <= at else None
        try:
            then = self.text_of(
                self.renderer.render_ids(
                    self.messages[: step.message + 1], tools=self.tools, add_generation_prompt=False
                )
            )
        except TemplateRenderError:
            return None
        if not then.startswith(prompt):
            return None
        sampled = self.text_of(_without_stop(step.completion_ids, self.renderer.get_stop_token_ids())).lstrip()
        behind_now = self.now[len(prompt) :]
        agreed_now = common_length(sampled, behind_now.lstrip())
        if common_length(sampled, then[len(prompt) :].lstrip()) <= agreed_now:
            return None
        at = len(self.now) - len(behind_now.lstrip()) + agreed_now
        return at, sampled, agreed_now

    def told(self, kind: VerdictKind, now_ids: TokenIds, at: int, ours: str, ours_at: int) -> Verdict:
        """The verdict for a difference at `at` in the text of now and `ours_at` in `ours`.

        Excerpts begin with the token of now that has the character, so that no marker is shown in part.
        """
        ids = now_ids.tolist()
        starts = range(len(ids))
        behind = bisect.bisect_right(starts, at, key=lambda count: len(self.text_of(TokenIds(ids[:count]))))
        token = max(behind - 1, 0)
        back = min(at - len(self.text_of(TokenIds(ids[:token]))), ours_at)
        spans = self.renderer.render(self.messages, tools=self.tools).spans
        owner = next((span.owner for span in spans if span.start <= token < span.end), -1)
        at, ours_at = at - back, ours_at - back
        excerpts = ours[ours_at : ours_at + _SHOWN], self.now[at : at + _SHOWN]
        return Verdict(kind, owner if owner >= 0 else None, *excerpts)


def _without_stop(ids: TokenIds, stops: Sequence[int]) -> TokenIds:
    return TokenIds(ids[:-1]) if len(ids) and ids[-1] in stops else ids
