"""The demo's picture: one real conversation, what a prefix cache keeps of it, and every token in colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tokentrue.cli.page import episode_page
from tokentrue.cli.painting import PaintedTurn, token_texts
from tokentrue.cli.report import percent
from tokentrue.rendering.renderer import Renderer
from tokentrue.rollouts.comparison import BLOCK_TOKENS, Comparison, DriftExample, TurnComparison
from tokentrue.rollouts.trajectory import EpisodeRecord, RunInfo

_LEFT, _RIGHT, _TOTAL = 90, 210, 1100
_STRIP, _ROW = 13, 44


def demo_picture(
    info: RunInfo,
    episode: EpisodeRecord,
    painted: Sequence[PaintedTurn],
    comparison: Comparison,
    example: tuple[DriftExample, Renderer] | None,
) -> str:
    """The page.

    Args:
        painted: With comparisons.
        comparison: Of the whole run, for the sentence on top.
        example: The first difference of this episode, and the renderer that decodes it.
    """
    compared = [turn.compared for turn in painted if turn.compared is not None]
    above = _lede(comparison) + _cache_chart(compared)
    if example is not None:
        above += _sides(*example)
    above += "<h3>The conversation, token by token</h3>"
    return episode_page(
        info, episode, painted, title="Exact tokens, and what text would have made of them", above=above
    )


def _lede(comparison: Comparison) -> str:
    exact = percent(comparison.exact_prefilled, comparison.exact_prompt)
    text = percent(comparison.rerendered_prefilled, comparison.rerendered_prompt)
    sentences = (
        f"In this run, {comparison.differing} of {comparison.follow_ups} follow-up prompts would have had other "
        f"ids if they had been rendered again from text. {exact} of their tokens had to be prefilled with "
        f"exact ids, {text} from text. "
        f"{comparison.exact_sequences} training sequences would have become {comparison.rerendered_sequences}. "
        f"Below is one conversation of it."
    )
    return f'<p class="lede">{escape(sentences)}</p>'


def _cache_chart(compared: Sequence[TurnComparison]) -> str:
    longest = max((max(len(one.exact_ids), len(one.rerendered_ids)) for one in compared), default=1) or 1
    scale = (_TOTAL - _LEFT - _RIGHT) / longest
    rows = [_chart_row(one, index, scale) for index, one in enumerate(compared)]
    height = _ROW * len(rows) + 26
    key = (
        _swatch(_LEFT, "kept", "reused from the prefix cache")
        + _swatch(_LEFT + 230, "todo", "to be prefilled")
        + f'<path class="bad" d="M {_LEFT + 380} 4 l 10 0 l -5 9 z"/>'
        + f'<text class="soft" x="{_LEFT + 397}" y="13">first id that differs</text>'
    )
    label = f"Prefix cache reuse per turn in blocks of {BLOCK_TOKENS} tokens, exact ids and ids rendered from text"
    return (
        f"<h3>Prefix cache, turn by turn (one cell: a block of {BLOCK_TOKENS} tokens)</h3>"
        f'<div class="scroll"><svg viewBox="0 0 {_TOTAL} {height}" role="img" aria-label="{escape(label)}">'
        f"{key}{''.join(rows)}</svg></div>"
        "<p>A prompt from text is compared with the prompts that text would have made before it. It is shorter "
        "where the template drops reasoning, so it can reuse a larger share of itself, and still it is not what "
        "was sampled.</p>"
    )


def _swatch(x: int, name: str, text: str) -> str:
    return (
        f'<rect class="{name}" x="{x}" y="2" width="14" height="12" rx="2"/>'
        f'<text class="soft" x="{x + 20}" y="13">{escape(text)}</text>'
    )


def _chart_row(one: TurnComparison, index: int, scale: float) -> str:
    top = 26 + index * _ROW
    parts = [f'<text x="0" y="{top + 20}">turn {one.record.turn.index}</text>']
    for line, (name, length, reused) in enumerate(
        (
            ("exact", len(one.exact_ids), one.exact_reused),
            ("from text", len(one.rerendered_ids), one.rerendered_reused),
        )
    ):
        y = top + line * (_STRIP + 3)
        parts.append(_strip(y, length, reused, scale))
        parts.append(
            f'<text class="soft" x="{_TOTAL - _RIGHT + 10}" y="{y + 11}">{name}: {reused} of {length} '
            f"({percent(reused, length)})</text>"
        )
    if one.first_difference is not None:
        x = _LEFT + one.first_difference * scale
        parts.append(f'<path class="bad" d="M {x - 5:.1f} {top - 9} l 10 0 l -5 9 z"/>')
    return "".join(parts)


def _strip(y: int, length: int, reused: int, scale: float) -> str:
    kept = f'<rect class="kept" x="{_LEFT}" y="{y}" width="{reused * scale:.1f}" height="{_STRIP}"/>'
    todo = (
        f'<rect class="todo" x="{_LEFT + reused * scale:.1f}" y="{y}" '
        f'width="{(length - reused) * scale:.1f}" height="{_STRIP}"/>'
    )
    lines = "".join(
        f"M {_LEFT + block * scale:.1f} {y} v {_STRIP} " for block in range(BLOCK_TOKENS, length, BLOCK_TOKENS)
    )
    return f'{kept}{todo}<path class="grid" d="{lines}"/>' if lines else kept + todo


def _sides(example: DriftExample, renderer: Renderer) -> str:
    rows = [
        _side("what the engine had seen", example, example.exact_ids, renderer),
        _side("rendered from text", example, example.rerendered_ids, renderer),
    ]
    return (
        f"<h3>The first difference: turn {example.turn}, id {example.position}: {escape(example.cause.value)}</h3>"
        f'<div class="scroll"><table class="sides">{"".join(rows)}</table></div>'
    )


def _side(name: str, example: DriftExample, ids: Sequence[int], renderer: Renderer) -> str:
    cells = []
    for offset, (token_id, text) in enumerate(zip(ids, token_texts(ids, renderer.tokenizer), strict=True)):
        is_first = example.start + offset == example.position
        shown = escape(text).replace("\n", "⏎").replace(" ", "·")
        cells.append(f"<td{' class=off' if is_first else ''}>{shown}<small>{token_id}</small></td>")
    return f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>"
