"""`check_renderer`: holds any renderer against the contract, by the laws, over generated turns.

What is compared with comes from rendering alone, and never from the bridge or the reader that is judged:

- A completion is what the rendering with the sampled message has behind the prompt.
- The tail behind the close is what two renderings of the conversation end with, in which the sampled texts are two
  different words (law 2).
- What a template leaves out of a message is seen by words that occur nowhere else (law 6).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tokentrue.errors import SpelledMarkerWarning
from tokentrue.rendering.contract import RendererContract
from tokentrue.testing.renderer_bridges import Told, judge_bridge, judge_refusals, judge_spans
from tokentrue.testing.renderer_cases import RendererCase, generate_cases, smallest_case
from tokentrue.testing.renderer_reading import judge_inverse, judge_reading
from tokentrue.testing.renderer_report import CheckResult, Failure, RendererCheck, RendererReport
from tokentrue.testing.renderer_turns import NotTried, ids_of, play, written_by

_Judge = Callable[[RendererContract, RendererCase], Told]
_THREADS = 4
_THREADED_CASES = 12


def check_renderer(renderer: RendererContract, *, seed: int = 0, turns: int = 40) -> RendererReport:
    """Hold `renderer` against its contract; `report.raise_if_broken()` asserts that it is kept.

    Needs no test framework, and no tokenizer: what is known of the renderer is what the contract gives.

    Args:
        seed: Of the generated turns: the same seed gives the same ones.
        turns: How many turns; each is bridged, refused, read whole, and read cut short.
    """
    with warnings.catch_warnings():
        # What is read of a completion that was cut may spell a marker; nobody wrote that.
        warnings.simplefilter("ignore", SpelledMarkerWarning)
        return _checked(renderer, list(generate_cases(seed, turns)))


def _checked(renderer: RendererContract, cases: Sequence[RendererCase]) -> RendererReport:
    results = {check: CheckResult(check) for check in RendererCheck}
    _enter(results[RendererCheck.STOPS], _judge_stops(renderer), None, None)
    for case in cases:
        for judge, checks in _JUDGES:
            for check, told in _judged(judge, checks, renderer, case).items():
                _enter(results[check], told, case, _still_fails(judge, checks, check, renderer))
    told = _judge_threads(renderer, cases[:: max(1, len(cases) // _THREADED_CASES)])
    _enter(results[RendererCheck.THREADS], told, None, None)
    return RendererReport(tuple(results.values()))


def _judged(
    judge: _Judge, checks: Sequence[RendererCheck], renderer: RendererContract, case: RendererCase
) -> Mapping[RendererCheck, str | NotTried]:
    try:
        return judge(renderer, case)
    except NotTried as reason:
        return dict.fromkeys(checks, reason)
    except Exception as exc:  # noqa: BLE001 - whatever a renderer raises is what is reported of it
        return {checks[0]: f"raised {type(exc).__name__}: {exc}"}


def _still_fails(
    judge: _Judge, checks: Sequence[RendererCheck], check: RendererCheck, renderer: RendererContract
) -> Callable[[RendererCase], str]:
    def told(case: RendererCase) -> str:
        found = _judged(judge, checks, renderer, case).get(check, "")
        return found if isinstance(found, str) else ""

    return told


def _enter(
    result: CheckResult,
    told: str | NotTried,
    case: RendererCase | None,
    again: Callable[[RendererCase], str] | None,
) -> None:
    if isinstance(told, NotTried):
        result.refused[str(told)] += 1
    elif not told:
        result.passed += 1
    else:
        result.failed += 1
        if result.failure is None:
            smallest = smallest_case(case, again) if case is not None and again is not None else None
            result.failure = Failure(smallest, (again(smallest) if smallest and again else "") or told)


def _judge_stops(renderer: RendererContract) -> str:
    stops = renderer.get_stop_token_ids()
    wrong = [each for each in stops if type(each) is not int or not 0 <= each < renderer.vocab_size]
    if not stops:
        return "there are no stop ids: a completion could never end"
    if wrong or len(set(stops)) != len(stops):
        return f"stop ids {list(stops)} are not different ids below {renderer.vocab_size}"
    return ""


def _judge_rendering(renderer: RendererContract, case: RendererCase) -> Told:
    messages = (*case.opening, case.said, *case.new)
    ids = ids_of(renderer, messages, case.tools)
    rendered = renderer.render([each.to_openai() for each in messages], tools=case.tools)
    wrong = [each for each in ids if not 0 <= each < renderer.vocab_size]
    stable = f"ids {wrong} are outside the vocabulary of {renderer.vocab_size}" if wrong else ""
    if rendered.token_ids.tolist() != ids or ids_of(renderer, messages, case.tools) != ids:
        stable = "the same messages gave different ids: asked twice, as ids or with their writers, as dicts or not"
    if rendered.stop_token_ids != renderer.get_stop_token_ids() or not renderer.identity:
        stable = "the rendering has other stop ids than the renderer, or the renderer has no identity"
    callers = [
        replace(each, content="")
        if each.role == "assistant" or (each is messages[0] and each.role == "system")
        else each
        for each in messages
    ]

    def leaves_out(index: int) -> bool:
        other = (*messages[:index], replace(messages[index], content="qzNew"), *messages[index + 1 :])
        return ids_of(renderer, other, case.tools) == ids

    spans = judge_spans(rendered.spans, 0, len(ids), callers, 0, leaves_out)
    return {RendererCheck.STABLE: stable, RendererCheck.SPANS: spans}


def _judge_threads(renderer: RendererContract, cases: Sequence[RendererCase]) -> str:
    def work(case: RendererCase) -> list[object]:
        try:
            turn = play(renderer, case)
            prompt, ids = written_by(renderer, case)
        except NotTried as reason:
            return [str(reason)]
        bridge = renderer.bridge_to_next_turn(
            turn.prompt_ids,
            turn.completion_ids,
            turn.new,
            history=turn.history,
            finish_reason=turn.finish_reason,
            tools=turn.tools,
        )
        return [turn, bridge, prompt, renderer.parse_response(ids, prompt, case.tools)]

    alone = [work(case) for case in cases]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for found in pool.map(lambda _: [work(case) for case in cases], range(_THREADS)):
                if found != alone:
                    return f"{_THREADS} threads at once got something else than one after the other"
        except Exception as exc:  # noqa: BLE001 - whatever a renderer raises is what is reported of it
            return f"{_THREADS} threads at once: raised {type(exc).__name__}: {exc}"
    return ""


_JUDGES: tuple[tuple[_Judge, tuple[RendererCheck, ...]], ...] = (
    (_judge_rendering, (RendererCheck.STABLE, RendererCheck.SPANS)),
    (
        judge_bridge,
        (RendererCheck.VERBATIM, RendererCheck.FAITHFUL, RendererCheck.JUNCTION, RendererCheck.SPANS),
    ),
    (judge_refusals, (RendererCheck.REFUSES,)),
    (judge_inverse, (RendererCheck.INVERSE,)),
    (judge_reading, (RendererCheck.CUT_SHORT, RendererCheck.PURE)),
)
"""Who judges a case, and which checks it is about; what it raises counts against the first."""
