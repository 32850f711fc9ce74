"""The renderer of one model: messages to ids, bridges, and ids back to messages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tokentrue.errors import TemplateRenderError, TokenizerFolderError
from tokentrue.generation import FinishReason
from tokentrue.messages import Message, SupportsModelDump, messages_from, tools_from
from tokentrue.rendering.bridge import Bridge, BridgeBuilder
from tokentrue.rendering.certificate import (
    Certificate,
    certify,
    find_opener_ids,
    kind_of,
    synthesised_history,
)
from tokentrue.rendering.chat_template import ChatTemplate, RememberingTemplate
from tokentrue.rendering.contract import Messages, Tools
from tokentrue.rendering.fast_tokenizer import with_fast
from tokentrue.rendering.formats.elements import Elements
from tokentrue.rendering.formats.probing import Probes
from tokentrue.rendering.formats.tool_calls import CallsWritten, calls_written
from tokentrue.rendering.formats.tool_format import ToolFormat
from tokentrue.rendering.independence import (
    generation_prompts,
    made_up_calls_matter_nowhere,
    short_history_is_enough,
)
from tokentrue.rendering.left_off import find_left_off
from tokentrue.rendering.named_folder import folder_of
from tokentrue.rendering.proof_cache import Proof, ProofCache, proof_key
from tokentrue.rendering.reader import ParsedResponse, Reader, derive_reader
from tokentrue.rendering.rendered import UNKNOWN_WRITERS, MaskedConversation, RenderedTokens
from tokentrue.rendering.spans import character_spans, token_spans
from tokentrue.rendering.spelled import MarkerPolicy, SpelledMarkers, Written, control_markers
from tokentrue.rendering.stops import DerivedStops, derive_stops
from tokentrue.rendering.streaming import StreamingReader
from tokentrue.rendering.tail import BridgeRefused, Disproof, FollowUp, TailFinder, TailMemory
from tokentrue.rendering.template_messages import MessageForm, probe_message_form
from tokentrue.rendering.tokenizer import Tokenizer, read_chat_templates, read_stop_ids
from tokentrue.tokens import TokenIds
from tokentrue.turns import Why

"""The folder of the model that comes with the package; only its files are known here, not its engine."""

NO_CACHE = ProofCache()
_KEPT_TIMES = 32
"""Renderers of how many dates are kept: conversations that began on as many days may go on side by side."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders, bridges and parses for one tokenizer folder. Immutable; share it between sessions.

    Made by `load_renderer`. Nothing in it knows a model by name: close, reasoning, tool grammar and
    glue are derived from the folder's own template.
    """

    tokenizer: Tokenizer = field(repr=False)
    template: ChatTemplate = field(repr=False)
    form: MessageForm = field(repr=False)
    stop_ids: tuple[int, ...] = field(repr=False)
    bridges: BridgeBuilder = field(repr=False)
    reader: Reader = field(repr=False)
    tool_format: ToolFormat | None = field(repr=False)
    markers: SpelledMarkers = field(repr=False)
    folder: str
    stop_doubts: tuple[str, ...] = field(default=(), repr=False)
    is_pinned: bool = field(default=True, repr=False)
    proofs: ProofCache = field(default=NO_CACHE, repr=False, compare=False)
    _certificates: list[Certificate] = field(default_factory=list, init=False, repr=False, compare=False)
    _at: dict[str, Renderer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, now: datetime) -> Renderer:
        """The renderer that tells its template another time; itself when that is the same to the template.

        Nothing is derived anew: what a date changes in the shape of a bridge, the comparison with a full
        rendering finds on first use. A renderer that was loaded with a `now` of its own keeps it.
        """
        template = self.template if self.is_pinned else replace(self.template, now=now)
        told = template.told_time
        if told == self.template.told_time:
            return self
        found = self._at.get(told)
        if found is None:
            markers, known = replace(self.markers, template=template), self.bridges.tails.memory.disproofs
            tails = replace(
                self.bridges.tails, template=template, markers=markers, memory=TailMemory(disproofs=known)
            )
            bridges = replace(self.bridges, tails=tails)
            found = replace(self, template=template, markers=markers, bridges=bridges)
            for oldest in list(self._at)[: -_KEPT_TIMES + 1]:
                self._at.pop(oldest, None)
            self._at[told] = found
        return found

    def with_template_kwargs(self, template_kwargs: Mapping[str, Any]) -> Renderer:
        """The same folder with further variables for the template; everything is derived anew."""
        template = replace(self.template, kwargs={**self.template.kwargs, **template_kwargs})
        made = make_renderer(
            self.tokenizer, template, self.stop_ids, self.folder, self.markers.policy, self.proofs
        )
        return replace(made, is_pinned=self.is_pinned, stop_doubts=self.stop_doubts)

    def render_text(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the template writes it.

        Raises:
            InvalidMessageError: A message is not in OpenAI chat shape.
            TemplateRenderError: The template refuses the messages.
        """
        return self.template.render_text(
            self.form.to_templates(messages_from(messages)),
            tools_from(tools),
            add_generation_prompt=add_generation_prompt,
        )

    def render_ids(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> TokenIds:
        """The prompt ids of `messages`, from nothing; raises as `render_text` does."""
        written = self.write(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        return TokenIds(self.markers.encode(written))

    def write(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> Written:
        """`render_text`, with what of it must not become a special token; `encode_written` gives its ids.

        Raises:
            SpelledMarkerError: Under `spelled_markers="escape"`: who wrote a special token cannot be told.
        """
        listed, offered = messages_from(messages), tools_from(tools)
        self.markers.tell(listed, tools=offered)
        return self.markers.write(listed, offered, add_generation_prompt=add_generation_prompt)

    def encode_written(self, written: Written) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a rendering, and the characters of it that each stands for; raises as `write` does."""
        return self.markers.encode_with_offsets(written)

    def render(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> RenderedTokens:
        """`render_ids`, with the writer of every id and the stop set; raises as `render_text` does."""
        listed, offered = messages_from(messages), tools_from(tools)
        written = self.write(listed, tools=offered, add_generation_prompt=add_generation_prompt)
        text = written.text
        masked = MaskedConversation.of(listed)
        try:
            masked_text = self.template.render_text(
                self.form.to_templates(masked.messages), offered, add_generation_prompt=add_generation_prompt
            )
        except TemplateRenderError:
            bodies = None
        else:
            bodies = masked.locate(masked_text, text)
        ids, offsets = self.encode_written(written)
        spans = UNKNOWN_WRITERS
        if bodies is not None:
            spans = token_spans(offsets, character_spans(text, bodies, self._stop_texts(), -1), 0)
        return RenderedTokens(TokenIds(ids), spans, self.stop_ids, text)

    def _stop_texts(self) -> list[str]:
        found = (self.tokenizer.added_token_of_id(stop_id) for stop_id in self.stop_ids)
        return [info.text for info in found if info is not None]

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: Sequence[int],
        previous_completion_ids: Sequence[int],
        new_messages: Messages,
        *,
        history: Messages | None = None,
        finish_reason: FinishReason | None = None,
        tools: Tools | None = None,
    ) -> Bridge | BridgeRefused:
        """The prompt that extends a turn by `new_messages`, or the reason why none can be proved.

        Law 1: a `Bridge` starts with `previous_prompt_ids + previous_completion_ids`, verbatim.

        Args:
            history: The conversation up to and including the sampled assistant message. Without it a
                minimal one is used where the certificate proves that it makes no difference.
            finish_reason: Tells a truncated completion (`LENGTH`) from one whose stop id the engine
                left out (`STOP`); None is read as truncated when no stop id is at the end.

        Raises:
            InvalidMessageError: A message is not in OpenAI chat shape.
        """
        new, offered = messages_from(new_messages), tools_from(tools)
        if history is None:
            found = self._synthesise(new, offered)
            if isinstance(found, BridgeRefused):
                return found
        else:
            found = messages_from(history)
        if not found or found[-1].role != "assistant":
            return BridgeRefused(Why.HISTORY_NEEDED, "the history must end with the sampled assistant message")
        prompt, completion = _token_ids(previous_prompt_ids), _token_ids(previous_completion_ids)
        return self.bridges.bridge(prompt, completion, FollowUp(found, new, offered), finish_reason)

    def _synthesise(
        self, new: tuple[Message, ...], tools: tuple[dict[str, Any], ...]
    ) -> tuple[Message, ...] | BridgeRefused:
        kind = kind_of(new)
        finding = self.certificate.finding(kind, bool(tools)) if kind is not None else None
        minimal = synthesised_history(new)
        if finding is None or not finding.history_free or minimal is None:
            return BridgeRefused(
                Why.HISTORY_NEEDED,
                "for this template the bridge depends on the conversation: give `history`",
            )
        if not made_up_calls_matter_nowhere(self.bridges.tails, minimal, new, tools):
            return BridgeRefused(
                Why.HISTORY_NEEDED,
                "the template writes the calls' own names, or their order, beside these results: give `history`, "
                "or a `name` with each result",
            )
        return minimal

    def render_assistant(
        self, message: Message | Mapping[str, Any] | SupportsModelDump, *, tools: Tools | None = None
    ) -> TokenIds:
        """The ids that the template writes for one assistant message, close included.

        The inverse of `parse_response` (law 6): what a model would sample that writes exactly as the
        template does.

        Raises:
            TemplateRenderError: The template does not write the message behind its generation prompt.
        """
        before = (Message(role="user", content="?"),)
        offered = tools_from(tools)
        said = Message.from_any(message)
        prompt = self.render_text(before, tools=offered)
        ended = self.markers.write((*before, said), offered)
        if not ended.text.startswith(prompt):
            raise TemplateRenderError(
                "the template's generation prompt is no part of its history, so there is no such completion"
            )
        ids = self.markers.encode(ended.behind(len(prompt)))
        last = max((i for i, token_id in enumerate(ids) if token_id in self.stop_ids), default=len(ids) - 1)
        return TokenIds(ids[: last + 1])

    def parse_response(
        self, ids: Sequence[int], prompt_ids: Sequence[int] = (), tools: Tools | None = None
    ) -> ParsedResponse:
        """Read a completion; never raises on what a model wrote.

        Args:
            ids: The sampled ids.
            prompt_ids: The prompt they continue: it tells whether reasoning was already open.
            tools: The offered tools: a call to another one is `UNKNOWN_TOOL`.
        """
        prompt = _token_ids(prompt_ids)
        tail = self.bridges.generation_tail(prompt)
        return self.reader.parse(ids, prompt_tail=tail, tools=tools_from(tools))

    def start_reading(self, prompt_ids: Sequence[int] = (), tools: Tools | None = None) -> StreamingReader:
        """A reader to feed with a completion's ids as they are sampled; arguments as for `parse_response`."""
        tail = self.bridges.generation_tail(_token_ids(prompt_ids))
        return self.reader.start(prompt_tail=tail, tools=tools_from(tools))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included; lossy where they cut a character."""
        return self.tokenizer.decode(ids)

    def get_stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end a completion: generation_config's, the tokenizer's eos, the template's close."""
        return self.stop_ids

    @property
    def identity(self) -> str:
        """What makes two renderers write the same ids: template, kwargs, tokenizer, clock, policy for markers."""
        told = self.template.told_time
        return f"{self.template.content_hash}/{self.tokenizer.content_hash}/{told}/{self.markers.policy.value}"

    @property
    def vocab_size(self) -> int:
        """One more than the largest id of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def disproofs(self) -> tuple[Disproof, ...]:
        """Where a short history gave another bridge than the whole conversation; empty as long as none did.

        Each is also told once as a `FastPathWarning`, and its shape is rendered in full from then on.
        """
        return tuple(self.bridges.tails.memory.disproofs)

    @property
    def calls_written(self) -> CallsWritten:
        """What the template does with tool calls: where `tool_format` is None, this tells why."""
        return calls_written(Probes.of(self.template, self.form, self.tokenizer, self.stop_ids), self.tool_format)

    @property
    def certificate(self) -> Certificate:
        """What was proved about this template and tokenizer; computed on first use, or found in the cache."""
        if not self._certificates:
            key = proof_key(self.template, self.tokenizer, self.stop_ids, self.markers.policy)
            kept = self.proofs.read(key)
            found = kept.certificate if kept is not None else None
            if found is None:
                found = certify(self.bridges, self.tool_format, self.calls_written)
                self.proofs.write(key, Proof(found.short_history, found))
            self._certificates.append(replace(found, stop_doubts=self.stop_doubts))
        return self._certificates[0]


def _token_ids(ids: Sequence[int]) -> TokenIds:
    return ids if isinstance(ids, TokenIds) else TokenIds(ids)


def load_renderer(
    path_or_name: str | Path,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    stop_token_ids: Sequence[int] = (),
    now: datetime | None = None,
    spelled_markers: str = "as_template",
    fast_tokenizer: str = "off",
) -> Renderer:
    """Read a Hugging Face tokenizer folder and derive everything from it.

    Args:
        path_or_name: A folder with tokenizer.json, and chat_template.jinja or tokenizer_config.json;
            generation_config.json names the stop ids; without it, the stops that the template shows for
            certain are added to the tokenizer's eos, and the certificate names the doubts. Or a name: "embedded"
            is the model that comes with the package, any other one ("Qwen/Qwen3-8B") a model in the local Hugging
            Face cache; no hub is asked.
        template_kwargs: Further variables for the template, such as `{"enable_thinking": False}`.
        stop_token_ids: Further stop ids, in addition to the folder's own.
        now: What `strftime_now` tells the template, whatever the clock says. None is the time of this call, and
            for a session of `RendererClient` the time of its first turn, which it keeps over midnight.
        spelled_markers: What becomes of message text that spells a special token: "as_template" makes it that
            token, as engines and training pipelines do; "escape" keeps it plain text. Either way there is a
            `SpelledMarkerWarning`.
        fast_tokenizer: A faster library for ids, used where it proves equal to `tokenizers`: "off", "gigatoken",
            or "auto", which is that where it is installed. Another id is a `FastTokenizerWarning`, and it is off.

    What is proved about a template is kept in `~/.cache/tokentrue` (see `ProofCache.of_environment`).

    Raises:
        TokenizerFolderError: The folder, or a file in it, is missing or unreadable.
        TemplateRenderError: The chat template is not valid Jinja.
        ConfigError: `spelled_markers` or `fast_tokenizer` is none of its values, or that library is not installed.
    """
    policy = MarkerPolicy.named(spelled_markers)
    folder = folder_of(path_or_name)
    tokenizer = with_fast(Tokenizer.load(folder), folder, fast_tokenizer)
    default, tool_use = read_chat_templates(folder, tokenizer.config)
    template = ChatTemplate(
        default=default,
        tool_use=tool_use,
        special_tokens=tokenizer.special_tokens,
        kwargs=dict(template_kwargs or {}),
        now=now if now is not None else datetime.now(),
    )
    named, complete = read_stop_ids(folder, tokenizer)
    form = probe_message_form(template)
    named = tuple(dict.fromkeys((*named, *stop_token_ids)))
    derived = DerivedStops(()) if complete else derive_stops(template, form, tokenizer, named)
    stop_ids = tuple(dict.fromkeys((*named, *derived.ids)))
    if not stop_ids:
        raise TokenizerFolderError(
            f"{folder} names no stop token: neither generation_config.json (eos_token_id) nor "
            f"tokenizer_config.json (eos_token); pass stop_token_ids"
        )
    proofs = ProofCache.of_environment(os.environ)
    made = make_renderer(tokenizer, template, stop_ids, str(folder), policy, proofs)
    return replace(made, is_pinned=now is not None, stop_doubts=derived.doubts)


def make_renderer(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    stop_ids: tuple[int, ...],
    folder: str,
    policy: MarkerPolicy = MarkerPolicy.AS_TEMPLATE,
    proofs: ProofCache = NO_CACHE,
) -> Renderer:
    """Derive a renderer from its parts; what takes long is looked up in `proofs` first."""
    form, probed = probe_message_form(template), RememberingTemplate.of(template)
    probes = TailFinder(probed, form, tokenizer, stop_ids)
    probes = replace(probes, left_off=find_left_off(probes))
    probes = replace(probes, short_is_enough=_short_is_enough(probes, policy, proofs))
    reader = derive_reader(Probes.of(probed, form, tokenizer, stop_ids), stop_ids)
    control = control_markers(template, form, tokenizer, reader)
    markers = SpelledMarkers(policy, control, template, form)
    builder = BridgeBuilder(
        tails=replace(probes, template=template, markers=markers),
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        reasoning=reader.reasoning,
        opener_ids=find_opener_ids(probes),
        generation_prompts=tuple(tuple(tokenizer.encode(text)) for text in generation_prompts(probes)),
        elements=reader.tools if isinstance(reader.tools, Elements) else None,
    )
    return Renderer(
        tokenizer=tokenizer,
        template=template,
        form=form,
        stop_ids=stop_ids,
        bridges=builder,
        reader=reader,
        tool_format=reader.tools,
        markers=markers,
        folder=folder,
        proofs=proofs,
    )


def _short_is_enough(tails: TailFinder, policy: MarkerPolicy, proofs: ProofCache) -> bool:
    """`short_history_is_enough`, which renders up to some thousand conversations, or what is kept of it."""
    key = proof_key(tails.template, tails.tokenizer, tails.stop_ids, policy)
    kept = proofs.read(key)
    if kept is not None:
        return kept.short_history
    found = short_history_is_enough(tails)
    proofs.write(key, Proof(found))
    return found
