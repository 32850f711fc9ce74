"""`check_renderer` passes what is right, catches every seeded fault, and tells the smallest case."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from functools import cache

import pytest

from templates.at_hand import Template, renderer_for, templates_at_hand
from tokentrue import Renderer, TokenIds, load_renderer
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.tail import BridgeRefused
from tokentrue.testing import ConformanceError, RendererCheck, check_renderer
from tokentrue.testing.renderer_cases import Ending
from tokentrue.turns import Junction, TokenSpan, Why

TURNS = int(os.environ.get("TOKENTRUE_EXAMPLES", "12"))


@cache
def embedded() -> Renderer:
    return load_renderer("embedded")


class Faulty:
    """A renderer that is right, but for what a subclass does."""

    def __init__(self) -> None:
        self.right = embedded()
        self.newline = self.right.tokenizer.encode("\n")[0]

    def __getattr__(self, name: str):
        return getattr(self.right, name)

    def bridge_to_next_turn(self, previous_prompt_ids, previous_completion_ids, new_messages, **given):
        asked = (previous_prompt_ids, previous_completion_ids, new_messages)
        outcome = self.right.bridge_to_next_turn(*asked, **given)
        return self.mend(outcome, TokenIds(previous_completion_ids)) if isinstance(outcome, Bridge) else outcome

    def mend(self, bridge: Bridge, completion: TokenIds) -> Bridge | BridgeRefused:
        return bridge

    def parse_response(self, ids, prompt_ids=(), tools=None):
        return self.reread(self.right.parse_response(ids, prompt_ids, tools), ids)

    def reread(self, parsed, ids):
        return parsed


def with_added(bridge: Bridge, added: list[int]) -> Bridge:
    known = TokenIds(bridge.prompt_ids[: bridge.known_len])
    return replace(bridge, prompt_ids=known.extended(added), added_ids=tuple(added), spans=())


class DropsTheNewline(Faulty):
    def mend(self, bridge, completion):
        added = list(bridge.added_ids)
        added.remove(self.newline)
        return with_added(bridge, added)


class AddsANewline(Faulty):
    def mend(self, bridge, completion):
        return with_added(bridge, [*bridge.added_ids, self.newline])


class LeavesTheNewMessageOut(Faulty):
    def mend(self, bridge, completion):
        bodies = [span for span in bridge.spans if span.kind.name == "BODY"]
        gone = {at for span in bodies for at in range(span.start, span.end)}
        kept = [each for at, each in enumerate(bridge.added_ids, start=bridge.known_len) if at not in gone]
        return with_added(bridge, kept)


class DoesNotCloseWhatWasCut(Faulty):
    def mend(self, bridge, completion):
        if bridge.junction is not Junction.CLOSE_ADDED:
            return bridge
        return with_added(bridge, list(bridge.added_ids[1:]))


class TrimsBehindAStop(Faulty):
    def bridge_to_next_turn(self, previous_prompt_ids, previous_completion_ids, new_messages, **given):
        ids = list(previous_completion_ids)
        stops = [at for at, each in enumerate(ids) if each in self.right.stop_ids]
        kept = ids[: stops[0] + 1] if stops else ids
        return self.right.bridge_to_next_turn(previous_prompt_ids, kept, new_messages, **given)


class RespacesArguments(Faulty):
    """What re-encoding from text does to what was sampled."""

    def mend(self, bridge, completion):
        decode, encode = self.right.tokenizer.decode, self.right.tokenizer.encode
        respaced = encode(decode(bridge.prompt_ids.tolist()).replace('": ', '":'))
        return replace(bridge, prompt_ids=TokenIds(respaced), spans=())


class AlwaysSaysExact(Faulty):
    def mend(self, bridge, completion):
        return replace(bridge, junction=Junction.EXACT)


class CallsACutAStop(Faulty):
    def mend(self, bridge, completion):
        restored = bridge.junction is Junction.CLOSE_ADDED
        return replace(bridge, junction=Junction.CLOSE_RESTORED) if restored else bridge


class BridgesIdsThatAreNone(Faulty):
    def mend(self, bridge, completion):
        return with_added(bridge, [*bridge.added_ids[:-1], self.right.vocab_size])


class SpansWithAGap(Faulty):
    def mend(self, bridge, completion):
        return replace(bridge, spans=bridge.spans[1:])


class SpansOfNobody(Faulty):
    def mend(self, bridge, completion):
        last = bridge.spans[-1]
        return replace(bridge, spans=(TokenSpan(bridge.known_len, last.end, -1, last.kind),))


class RenderedSpansOfNobody(Faulty):
    """A full rendering that has a message's text, and does not say whose it is."""

    def render(self, messages, **given):
        rendered = self.right.render(messages, **given)
        last = len(messages) - 1
        spans = [replace(each, owner=-1) if each.owner == last else each for each in rendered.spans]
        return replace(rendered, spans=tuple(spans))


class RefusesWithoutAReason(Faulty):
    def bridge_to_next_turn(self, *asked, **given):
        outcome = self.right.bridge_to_next_turn(*asked, **given)
        return replace(outcome, detail="") if isinstance(outcome, BridgeRefused) else outcome


class BridgesWhatWasNotSampled(Faulty):
    def bridge_to_next_turn(self, previous_prompt_ids, previous_completion_ids, new_messages, **given):
        asked = [each for each in new_messages if each.role != "assistant"]
        return self.right.bridge_to_next_turn(previous_prompt_ids, previous_completion_ids, asked, **given)


class DropsACall(Faulty):
    def reread(self, parsed, ids):
        return replace(parsed, tool_calls=parsed.tool_calls[:1])


class RenamesATool(Faulty):
    def reread(self, parsed, ids):
        calls = [replace(call, name=call.name.upper()) if call.name else call for call in parsed.tool_calls]
        return replace(parsed, tool_calls=tuple(calls))


class StripsContent(Faulty):
    def reread(self, parsed, ids):
        return replace(parsed, content=" ".join(parsed.content.split()))


class LosesReasoning(Faulty):
    def reread(self, parsed, ids):
        return replace(parsed, reasoning_content=None)


class MakesUpArguments(Faulty):
    """The nine `arguments = {}` of other libraries."""

    def reread(self, parsed, ids):
        calls = [
            call
            if call.status is CallStatus.OK
            else replace(call, status=CallStatus.OK, name=call.name or "look_up", arguments="{}")
            for call in parsed.tool_calls
        ]
        return replace(parsed, tool_calls=tuple(calls))


class RaisesOnWhatIsUnfinished(Faulty):
    def reread(self, parsed, ids):
        for call in parsed.tool_calls:
            json.loads(call.arguments)
        return parsed


class TakesTheStopOff(Faulty):
    def parse_response(self, ids, prompt_ids=(), tools=None):
        if isinstance(ids, list) and ids and ids[-1] in self.right.stop_ids:
            ids.pop()
        return self.right.parse_response(ids, prompt_ids, tools)


class ReadsDifferentlyEachTime(Faulty):
    calls = 0

    def reread(self, parsed, ids):
        self.calls += 1
        return replace(parsed, stop_id=self.calls)


class RendersDifferentlyEachTime(Faulty):
    calls = 0

    def render_ids(self, messages, **given):
        self.calls += 1
        return self.right.render_ids(messages, **given).extended([self.calls % 7])


class KnowsNoStop(Faulty):
    def get_stop_token_ids(self):
        return ()


class OneThreadAtATime(Faulty):
    """Keeps what it works on in itself, as a fast tokenizer does when padding is switched on for one call."""

    at_work = 0

    def render_ids(self, messages, **given):
        self.at_work += 1
        time.sleep(0.0005)
        alone = self.at_work == 1
        self.at_work -= 1
        ids = self.right.render_ids(messages, **given)
        return ids if alone else TokenIds(ids[:-1])


FAULTS = [
    (DropsTheNewline, RendererCheck.FAITHFUL),
    (AddsANewline, RendererCheck.FAITHFUL),
    (LeavesTheNewMessageOut, RendererCheck.FAITHFUL),
    (DoesNotCloseWhatWasCut, RendererCheck.FAITHFUL),
    (TrimsBehindAStop, RendererCheck.REFUSES),
    (RespacesArguments, RendererCheck.VERBATIM),
    (AlwaysSaysExact, RendererCheck.JUNCTION),
    (CallsACutAStop, RendererCheck.JUNCTION),
    (BridgesIdsThatAreNone, RendererCheck.VERBATIM),
    (SpansWithAGap, RendererCheck.SPANS),
    (SpansOfNobody, RendererCheck.SPANS),
    (RenderedSpansOfNobody, RendererCheck.SPANS),
    (RefusesWithoutAReason, RendererCheck.REFUSES),
    (BridgesWhatWasNotSampled, RendererCheck.REFUSES),
    (DropsACall, RendererCheck.INVERSE),
    (RenamesATool, RendererCheck.INVERSE),
    (StripsContent, RendererCheck.INVERSE),
    (LosesReasoning, RendererCheck.INVERSE),
    (MakesUpArguments, RendererCheck.CUT_SHORT),
    (RaisesOnWhatIsUnfinished, RendererCheck.CUT_SHORT),
    (TakesTheStopOff, RendererCheck.PURE),
    (ReadsDifferentlyEachTime, RendererCheck.PURE),
    (RendersDifferentlyEachTime, RendererCheck.STABLE),
    (KnowsNoStop, RendererCheck.STOPS),
    (OneThreadAtATime, RendererCheck.THREADS),
]


@pytest.mark.parametrize(
    ("fault", "check"), FAULTS, ids=lambda each: each.__name__ if isinstance(each, type) else ""
)
def test_a_seeded_fault_is_caught(fault: type[Faulty], check: RendererCheck) -> None:
    report = check_renderer(fault(), turns=16)
    assert check in report.failed, str(report)
    failure = report[check].failure
    assert failure is not None
    assert failure.told
    with pytest.raises(ConformanceError, match=f"FAILED *{check.name}"):
        report.raise_if_broken()


def test_what_is_right_passes_and_no_check_is_left_out() -> None:
    report = check_renderer(embedded(), turns=40)
    report.raise_if_broken()
    assert report.failed == ()
    assert report.untried == ()
    assert {result.check for result in report.results} == set(RendererCheck)
    assert report[RendererCheck.FAITHFUL].passed == 40
    assert "passed  FAITHFUL" in str(report)


def test_the_counterexample_is_small() -> None:
    """Of forty turns with long texts, the one told is a greeting."""
    failure = check_renderer(DropsTheNewline(), turns=40)[RendererCheck.FAITHFUL].failure
    assert failure is not None
    case = failure.case
    assert case is not None
    assert (len(case.opening), len(case.new), case.said.tool_calls, case.ending) == (1, 1, (), Ending.CLEAN)
    assert len((case.said.content or "") + (case.new[0].content or "")) <= 4, str(failure)


def test_a_renderer_that_refuses_everything_does_not_pass() -> None:
    class RefusesAll(Faulty):
        def mend(self, bridge, completion):
            return BridgeRefused(Why.PLUG_IN_REFUSED, "never")

    report = check_renderer(RefusesAll(), turns=8)
    assert report.failed == ()
    assert report.untried == (RendererCheck.VERBATIM, RendererCheck.FAITHFUL, RendererCheck.JUNCTION)
    with pytest.raises(ConformanceError, match=r"untried *VERBATIM"):
        report.raise_if_broken()
    report.raise_if_broken(may_be_untried=report.untried)
    assert report[RendererCheck.VERBATIM].refused["refused, plug_in_refused (CLEAN)"] == 2


def test_the_same_seed_gives_the_same_report() -> None:
    reports = [str(check_renderer(StripsContent(), seed=seed, turns=12)) for seed in (1, 1, 2)]
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]


FEW = ("qwen3", "mistral-nemo", "glm-4.5", "gpt-oss", "tinyllama", "phi-3")
AT_HAND = [each for each in templates_at_hand() if "TOKENTRUE_ALL_TEMPLATES" in os.environ or each.name in FEW]
# They want a variable of their own, `functions`, which the contract has no word for.
REFUSE_EVERYTHING = (
    "huggingface.js/fireworks-ai__firefunction-v1",
    "llama.cpp/fireworks-ai-llama-3-firefunction-v2",
)


@pytest.mark.skipif(not AT_HAND, reason="../shared/tokenizers is absent: no real templates at hand")
@pytest.mark.parametrize("template", AT_HAND, ids=lambda template: template.name)
def test_our_renderer_keeps_the_contract_on_real_templates(template: Template) -> None:
    """tinyllama's template leaves tool results out, and phi-3's ends a conversation with a stop of its own."""
    renderer = renderer_for(template)
    report = check_renderer(renderer, turns=min(TURNS, 40))
    if template.name in REFUSE_EVERYTHING:
        assert report.failed == ()
        assert report[RendererCheck.STABLE].refused["the renderer refuses these messages"] == min(TURNS, 40)
        return
    assert report.untried == (), str(report)
    if renderer.tool_format is not None and "strings without quotes" in renderer.tool_format.name:
        # Where such a string ends cannot always be told: the call is then kept unread, never made up.
        failure = report[RendererCheck.INVERSE].failure
        assert set(report.failed) <= {RendererCheck.INVERSE}, str(report)
        assert failure is None or "malformed_tool_calls" in failure.told, str(report)
        return
    report.raise_if_broken()
