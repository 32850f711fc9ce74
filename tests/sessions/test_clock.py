"""A conversation keeps the date that it began with, and one that begins tomorrow gets tomorrow's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations import TOOLS, openings, texts
from rendering.conftest import LLAMA_LIKE, QWEN_LIKE
from rendering_folders import write_folder
from tokentrue import Message, Renderer, RendererClient, Session, load_renderer
from tokentrue.engines.engine import EngineInfo
from tokentrue.generation import FinishReason, GenerateRequest, Generation, make_tokens
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.turns import How, Why

instants = st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31))
pauses = st.timedeltas(timedelta(0), timedelta(days=40))


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(write_folder(tmp_path_factory.mktemp("dated"), LLAMA_LIKE))


def take_turn(session: Session, renderer: Renderer, messages: tuple[Message, ...], now: datetime) -> list[int]:
    """One turn at `now`, answered with one word and the close; its prompt."""
    at = session.clocked(renderer, now)
    stitched = session.stitch(at, messages, TOOLS)
    sampled = [*renderer.tokenizer.encode("Ho"), renderer.stop_ids[0]]
    generation = Generation(make_tokens(stitched.prompt_ids, sampled, [-0.5] * len(sampled)), FinishReason.STOP)
    session.commit(stitched, generation, Message(role="assistant", content="Ho"), FinishReason.STOP)
    return stitched.prompt_ids.tolist()


def rendered_at(renderer: Renderer, messages: tuple[Message, ...], now: datetime) -> list[int]:
    """The prompt as a template writes it that was never told another time."""
    template = ChatTemplate(LLAMA_LIKE, renderer.template.special_tokens, now=now)
    text = template.render_text(renderer.form.to_templates(messages), TOOLS, add_generation_prompt=True)
    return renderer.tokenizer.encode(text)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(opening=openings, begun=instants, rests=st.lists(st.tuples(pauses, texts), min_size=1, max_size=4))
def test_a_session_keeps_its_date_and_its_prefix_over_midnight(
    dated: Renderer, opening: tuple[Message, ...], begun: datetime, rests: list[tuple[timedelta, str]]
) -> None:
    session, now, messages = Session(), begun, opening
    prompts = [take_turn(session, dated, messages, now)]
    for pause, text in rests:
        now += pause
        messages = (*messages, Message(role="assistant", content="Ho"), Message(role="user", content=text))
        prompts.append(take_turn(session, dated, messages, now))
        assert prompts[-1][: len(prompts[-2])] == prompts[-2]
        assert session.turns[-1].stitch.how is How.BRIDGED
    assert prompts[-1] == rendered_at(dated, messages, begun)
    fresh = take_turn(Session(), dated, opening, now)
    assert fresh == rendered_at(dated, opening, now)
    assert (fresh == prompts[0]) == (now.date() == begun.date())


def test_a_date_that_was_asked_for_is_kept_whatever_the_clock_says(dated: Renderer) -> None:
    pinned = load_renderer(dated.folder, now=datetime(2031, 2, 3))
    assert pinned.at(datetime(2032, 1, 1)) is pinned
    prompt = take_turn(Session(), pinned, (Message(role="user", content="Hi"),), datetime(2032, 1, 1))
    assert "Today: 03 Feb 2031" in pinned.tokenizer.decode(prompt)


def test_a_template_without_a_date_stays_the_same_renderer(tmp_path: Path) -> None:
    renderer = load_renderer(write_folder(tmp_path, QWEN_LIKE))
    assert renderer.at(datetime(2032, 1, 1)) is renderer


def test_the_identity_changes_with_the_date_and_not_with_the_hour(dated: Renderer) -> None:
    morning, evening = dated.at(datetime(2030, 5, 6, 7)), dated.at(datetime(2030, 5, 6, 23))
    assert morning is evening
    assert morning.identity != dated.at(datetime(2030, 5, 7, 0)).identity
    assert morning.identity == load_renderer(dated.folder, now=datetime(2030, 5, 6)).identity
    assert dated.at(datetime(2030, 5, 6)).template.content_hash == dated.template.content_hash
    assert not dated.with_template_kwargs({"x": 1}).is_pinned


def test_a_session_of_another_day_does_not_pass_for_this_one(dated: Renderer) -> None:
    session = Session()
    asked = (Message(role="user", content="Hi"),)
    take_turn(session, dated, asked, datetime(2030, 5, 6))
    tomorrow = dated.at(datetime(2030, 5, 7))
    stitched = session.stitch(tomorrow, (*asked, Message(role="assistant", content="Ho"), *asked), TOOLS)
    assert (stitched.stitch.how, stitched.stitch.why) == (How.RENDERED, Why.NO_SHARED_PREFIX)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ strftime_now('%Y') }}{{ strftime_now('%d') }}", "2030\n06"),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", "2030"),
        ("{% macro d() %}{{ strftime_now('%Y') }}{% endmacro %}{{ d() }}", "2030"),
        ("{% set f = '%Y' %}{{ strftime_now(f) }}", "2030-05-06T07:08:09"),
        ("{% set f = strftime_now %}{{ f('%Y') }}", "2030-05-06T07:08:09"),
        ("no date", ""),
    ],
)
def test_what_a_template_is_told_of_the_time(source: str, told: str) -> None:
    template = ChatTemplate(source, now=datetime(2030, 5, 6, 7, 8, 9))
    assert template.told_time == told
    assert ("2030" in template.render_text([])) == bool(told)


class _Asked:
    """An engine that answers "Ho" and remembers its prompts."""

    def __init__(self, renderer: Renderer) -> None:
        self.prompts: list[str] = []
        self._renderer = renderer

    async def generate(self, request: GenerateRequest) -> Generation:
        await asyncio.sleep(0)
        self.prompts.append(self._renderer.tokenizer.decode(request.prompt_ids))
        ids = [*self._renderer.tokenizer.encode("Ho"), self._renderer.stop_ids[0]]
        return Generation(make_tokens(request.prompt_ids, ids, [-0.5] * len(ids)), FinishReason.STOP)

    async def describe(self, model: str | None = None) -> EngineInfo:
        raise AssertionError(f"nobody asks for {model}")

    async def close(self) -> None:
        await asyncio.sleep(0)


def test_the_client_gives_each_session_the_date_of_its_first_turn(dated: Renderer) -> None:
    ticks: Iterator[datetime] = iter(
        [datetime(2030, 5, 6, 23, 59), datetime(2030, 5, 7, 0, 1), datetime(2030, 5, 7)]
    )
    engine, session = _Asked(dated), Session()

    async def talk() -> None:
        async with RendererClient(engine, dated, clock=lambda: next(ticks)) as client:
            first = await client.get_response("Hi", "m", session=session)
            messages = [Message(role="user", content="Hi"), first.message, Message(role="user", content="And?")]
            await client.get_response(messages, "m", session=session)
            await client.get_response("Hi", "m")

    asyncio.run(talk())
    assert ["06 May 2030" in prompt for prompt in engine.prompts] == [True, True, False]
    assert "07 May 2030" in engine.prompts[2]
    assert session.turns[1].stitch.how is How.BRIDGED
