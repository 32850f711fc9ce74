"""Seeded faults: every named fault in close, separator, junction, arguments, evidence or mask is caught by a test.

    python scripts/mutation_check.py [--list] [--only NAME …] [--jobs N]

Each fault is one edit of the sources, applied to a copy in a temporary folder; the tests named with it run against
that copy and must fail. Before that, the same tests must pass on an unchanged copy. An edit whose old text is not
found exactly once is an error, so that this list stays true. Ends with 1 when a fault survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BRIDGE = "rendering/bridge.py"
TAIL = "rendering/tail.py"
SEAM = "rendering/seams.py"
BRIDGE_LAWS = "tests/rendering/test_bridge_laws.py"
FORMATS = "tests/rendering/test_formats.py"
SPLICING = "tests/sessions/test_splicing.py"
TESTS_FAILED = 1  # pytest's exit status when tests ran and some failed; others mean that they could not run


@dataclass(frozen=True)
class Fault:
    """One edit that must be noticed.

    Args:
        file: Below src/tokentrue.
        old: Found exactly once in it.
        tests: Arguments for pytest: the nearest tests.
        needs_shared: Only the real tokenizers beside the repository show it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    needs_shared: bool = False


def _laws(*names: str, renderer: str = "qwen_like") -> tuple[str, ...]:
    return tuple(f"{BRIDGE_LAWS}::{name}[{renderer}]" for name in names)


SEAMS = ("tests/rendering/test_seams.py",)
LEFT_OFF = ("tests/rendering/test_left_off.py",)
UNCLOSED = ("tests/rendering/test_unclosed_messages.py",)
SAID = ("tests/rendering/test_sampled_text_matters.py",)
LAW_1 = _laws("test_law_1_the_bridge_begins_with_what_was_sampled")
STATUSES = (f"{FORMATS}::test_each_kind_of_attempt_has_its_status",)
LAW_6 = (f"{FORMATS}::test_law_6_parse_is_the_inverse_of_render_assistant",)
CUTS = (f"{FORMATS}::test_a_cut_at_any_byte_raises_nothing_and_invents_nothing",)
DISORDER = "tests/rendering/test_disorder.py"
FRAMES = ("tests/rendering/test_frames.py::test_a_frame_is_taken_off_at_the_very_beginning_only",)
_IMPORTED = ("_replace(", '__import__("dataclasses").replace(')
FAULTS = (
    Fault(
        "close chosen one token too early",
        SEAM,
        "return FoundSeam(Seam(close, kind, close), around.between[:end])",
        "return FoundSeam(Seam(close, kind, close), around.between[: end - len(close.text)])",
        SEAMS,
    ),
    Fault(
        "close chosen as the last stop instead of the first",
        SEAM,
        "_, _, close = min(found, key=lambda item: item[:2])",
        "_, _, close = max(found, key=lambda item: item[:2])",
        SEAMS,
    ),
    Fault(
        "close dropped behind a truncated completion",
        BRIDGE,
        "        if junction is not Junction.CLOSE_ADDED:\n",
        "        if junction is not Junction.OPENER_DROPPED:\n",
        SEAMS,
    ),
    Fault(
        "separator newline dropped",
        BRIDGE,
        "ids, offsets = self.encode_tail(tail)",
        """ids, offsets = self.encode_tail(_replace(tail, text=tail.text.lstrip("\\n")))""".replace(*_IMPORTED),
        SEAMS,
    ),
    Fault(
        "separator doubled",
        BRIDGE,
        "ids, offsets = self.encode_tail(tail)",
        """ids, offsets = self.encode_tail(_replace(tail, text="\\n" + tail.text))""".replace(*_IMPORTED),
        SEAMS,
    ),
    Fault(
        "bridge encoded apart from the close",
        BRIDGE,
        "ids, offsets = self.encode_tail(tail)",
        "ids, offsets = self.tokenizer.encode_with_offsets(tail.text)\n"
        "            ids, offsets = [close.id, *ids], [(0, 0), *offsets]",
        ("tests/sessions/test_transcripts.py::test_real_conversations_keep_the_laws_turn_by_turn[phi-3]",),
        needs_shared=True,
    ),
    Fault(
        "junction close_added taken for exact",
        BRIDGE,
        "return Junction.CLOSE_ADDED",
        "return Junction.EXACT",
        SEAMS,
    ),
    Fault(
        "junction close_restored does not restore",
        BRIDGE,
        "            return (seam.restored.id,)\n",
        "            return ()\n",
        SEAMS,
    ),
    Fault(
        "junction opener_shared taken for exact",
        BRIDGE,
        "return Junction.OPENER_SHARED if seam.is_opener else Junction.EXACT",
        "return Junction.EXACT",
        SEAMS,
    ),
    Fault(
        "junction stop_rewritten writes a second close",
        BRIDGE,
        "if junction is Junction.STOP_REWRITTEN and (seam.is_opener or close.id in self.opener_ids):",
        "if junction is Junction.STOP_REWRITTEN:",
        SEAMS,
    ),
    Fault(
        "reasoning that was cut is ended without the line break in front of the close",
        BRIDGE,
        "return form.closing_text + space, space",
        "return form.closing_text, space",
        ("tests/rendering/test_cut_text.py",),
    ),
    Fault(
        "a cut element is ended without what was said of its tag already",
        "rendering/formats/elements.py",
        "        if left.startswith(reader.half_tag):\n",
        "        if not reader.half_tag:\n",
        ("tests/rendering/test_cut_text.py",),
    ),
    Fault(
        "a cut element is ended by the stop alone",
        BRIDGE,
        "        if self.elements is not None:\n",
        "        if self.elements is not None and not completion_ids:\n",
        ("tests/rendering/test_cut_text.py",),
    ),
    Fault(
        "reasoning that was lost is called the template's loss whatever it writes",
        "rollouts/proof.py",
        "    return len(set(texts)) == 1\n",
        "    return len(set(texts)) > 1\n",
        ("tests/rollouts/test_laws.py::test_reasoning_that_a_template_never_writes_back_is_its_own_loss",),
    ),
    Fault(
        "a splice is proved by what nobody sampled alone",
        "rollouts/proof.py",
        "    if not _is_whole(asked):\n",
        "    if _is_whole(asked):\n",
        ("tests/rollouts/test_spliced_record.py::test_a_splice_that_removes_more_than_the_template_breaks_law_2",),
    ),
    Fault(
        "half a tag at the end of a cut completion is told nowhere",
        "rendering/formats/elements.py",
        "            return self._said(half)\n",
        "            return []\n",
        (f"{FORMATS}::test_half_a_tag_where_a_completion_was_cut_is_text_of_its_element",),
    ),
    Fault(
        "raw arguments are called read whatever they are",
        "rendering/formats/parsed.py",
        "        return ParsedToolCall(raw, CallStatus.INVALID_JSON, name, id=call_id)\n    return",
        "        pass\n    return",
        (f"{FORMATS}::test_arguments_that_are_written_as_they_are_keep_their_spelling",),
    ),
    Fault(
        "a close that is left out behind the last message is taken for an opener",
        SEAM,
        "ended = None if place_only or close.id in left_off else around.find_ended()",
        "ended = None if place_only else around.find_ended()",
        LEFT_OFF,
    ),
    Fault(
        "an opener of all roles is taken for a close",
        "rendering/left_off.py",
        "return bool(found) and close not in front and behind.startswith(begins.ended + close)",
        "return bool(found) and behind.startswith(begins.ended + close)",
        LEFT_OFF,
    ),
    Fault(
        "the close behind a message left out is not compared with the real rendering",
        TAIL,
        "if isinstance(found, Tail) and not dropped.real.endswith(found.seam.close.text + found.text):",
        "if not isinstance(found, Tail):",
        UNCLOSED,
    ),
    Fault(
        "an opener is the close where no opener is a stop",
        SEAM,
        "return max(found, key=lambda stop: len(stop.text), default=None)",
        "return max(found, key=lambda stop: len(stop.text), default=stops[0])",
        UNCLOSED,
    ),
    Fault(
        "an opener is the close that does not open the same message behind a user",
        SEAM,
        "if begins is None or begins.opening != opening or begins.ended.endswith(opener.text):",
        "if begins is None or begins.ended.endswith(opener.text):",
        UNCLOSED,
    ),
    Fault(
        "junction opener_dropped keeps an opener that a user's message would have",
        BRIDGE,
        "dropped = is_opener and (last in self.opener_ids or last == seam.sampled.id)",
        "dropped = is_opener and last in self.opener_ids",
        UNCLOSED,
    ),
    Fault(
        "an opener that is written behind the last message too is taken for a close",
        "rendering/certificate.py",
        "tail.seam.is_opener or _opens(tails, tail, asked.new, asked.tools)",
        "tail.seam.is_opener",
        UNCLOSED,
    ),
    Fault(
        "what ends calls is a close, though a result has no other role token",
        "rendering/certificate.py",
        "for tail, asked in doubtful if found else ():",
        "for tail, asked in ():",
        UNCLOSED,
    ),
    Fault(
        "what the sampled message says is not asked of the template",
        TAIL,
        "        if text.endswith(wanted):",
        "        if text:",
        SAID,
    ),
    Fault(
        "a short history is enough where the whole one is refused",
        "rendering/independence.py",
        'return None if tail.why is Why.TEMPLATE_RAISED else ""',
        "return None",
        SAID,
    ),
    Fault(
        "a stop is left out though the close of one call more has another tail",
        SEAM,
        "if stop is None or behind[behind.find(stop.text) + len(stop.text) :] != around.tail[len(ended) :]:",
        "if stop is None:",
        UNCLOSED,
    ),
    Fault(
        "junction exact behind the last token of a message whose stop is left out",
        BRIDGE,
        "if last == seam.close.id and seam.kind is not SeamKind.NO_STOP:",
        "if last == seam.close.id:",
        UNCLOSED,
    ),
    Fault(
        "junction close_restored writes the message's last token for its stop",
        SEAM,
        "return self.close if self.is_opener else self.sampled",
        "return self.close",
        UNCLOSED,
    ),
    Fault(
        "junction close_added writes the message's last token for its stop",
        SEAM,
        "return self.sampled if self.kind is SeamKind.NO_STOP else self.close",
        "return self.close",
        UNCLOSED,
    ),
    Fault(
        "calls that history leaves out are not told by the certificate",
        "rendering/certificate.py",
        "    if tail.dropped_calls:\n",
        "    if not said and tail.dropped_calls == ('',):\n",
        UNCLOSED,
    ),
    Fault(
        "open reasoning is not closed behind a truncated completion",
        BRIDGE,
        "        if self.reasoning.is_open(sampled):\n            return is_open or None\n",
        "",
        (f"{BRIDGE_LAWS}::test_truncated_reasoning_is_closed_before_the_message_is",),
    ),
    Fault(
        "a stop in the middle is passed over",
        BRIDGE,
        "        if token_id in stop_ids:\n",
        "        if token_id in stop_ids and position < 0:\n",
        _laws("test_a_stop_in_the_middle_is_refused_never_trimmed"),
    ),
    Fault(
        "sampled ids are spliced: the last one is lost",
        BRIDGE,
        "known = prompt_ids.extended(kept)",
        "known = prompt_ids.extended(kept[:-1])",
        LAW_1,
    ),
    Fault(
        "glue remembered from another conversation",
        TAIL,
        "        uses = self.memory.uses.get(shape, 0)\n",
        '        found = globals().setdefault("GLUE", {}).setdefault(len(shape), found)\n'
        "        uses = self.memory.uses.get(shape, 0)\n",
        ("tests/rendering/test_between_conversations.py::test_a_long_conversation_costs_short_renderings",),
        needs_shared=True,
    ),
    Fault(
        "a short rendering taken where only the whole conversation tells",
        TAIL,
        "short = follow_up.shortened() if self.short_is_enough else None",
        "short = follow_up.shortened()",
        (
            "tests/rendering/test_between_conversations.py::test_a_template_that_looks_back_is_rendered_in_full_each_time",
        ),
    ),
    Fault(
        "arguments respaced",
        "rendering/formats/parsed.py",
        'arguments = bytes(fields[self.arguments_key]).decode("utf-8")',
        "arguments = json.dumps(json.loads(bytes(fields[self.arguments_key])))",
        ("tests/rendering/test_reader_laws.py::test_each_kind_of_attempt_has_its_status",),
    ),
    Fault(
        "arguments that are no JSON replaced by {}",
        "rendering/formats/parsed.py",
        "return ParsedToolCall(raw, CallStatus.INVALID_JSON, name, id=call_id)",
        'return ParsedToolCall(raw, CallStatus.OK, name, "{}", call_id)',
        STATUSES,
    ),
    Fault(
        "arguments that were never written replaced by {}",
        "rendering/formats/json_calls.py",
        "return (ParsedToolCall(raw, CallStatus.INVALID_JSON, name, id=call_id),)",
        'return (ParsedToolCall(raw, CallStatus.OK, name, "{}", call_id),)',
        STATUSES,
    ),
    Fault(
        "a truncated call taken for a call",
        "rendering/formats/json_calls.py",
        "return (self.keys.read(raw) if closed else ParsedToolCall(raw, CallStatus.UNCLOSED),)",
        "return (self.keys.read(raw),)",
        ("tests/rendering/test_reader_laws.py::test_a_call_that_is_never_closed_is_kept_with_what_was_written",),
    ),
    Fault(
        "parallel calls in the wrong order",
        "rendering/reader.py",
        "tool_calls=tuple(call for call in readable if call is not None),",
        "tool_calls=tuple(call for call in reversed(readable) if call is not None),",
        LAW_6,
    ),
    Fault(
        "a number taken for a string",
        "rendering/formats/typed_values.py",
        '    if types == {"string"}:\n        return text\n',
        "    if types:\n        return text\n",
        STATUSES,
    ),
    Fault(
        "a string taken for a number",
        "rendering/formats/typed_values.py",
        '    if types == {"string"}:\n        return text\n',
        '    if types == {"string"}:\n        return json.loads(text) if text.isdigit() else text\n',
        STATUSES,
    ),
    Fault(
        "the echo of the prompt is not compared",
        "transports/evidence.py",
        "    if echoed != sent:\n",
        "    if len(echoed) < 0:\n",
        ("tests/transports/test_dynamo_evidence.py",),
    ),
    Fault(
        "the count of the prompt is not compared",
        "transports/evidence.py",
        "    if counted is not None and counted != len(request.prompt_ids):\n",
        "    if counted is not None and counted < 0:\n",
        ("tests/transports/test_dynamo_evidence.py",),
    ),
    Fault(
        "log-probabilities of other ids are accepted",
        "transports/evidence.py",
        "        if named != token_id:\n",
        "        if named is False:\n",
        ("tests/transports/test_generated.py",),
    ),
    Fault(
        "ids and log-probabilities may differ in number",
        "tokens.py",
        "        if len(self.completion_ids) != len(self.completion_logprobs):\n",
        "        if len(self.completion_ids) < 0:\n",
        ("tests/vocabulary/test_tokens.py",),
    ),
    Fault(
        "loss mask off by one",
        "sessions/samples.py",
        "        mask[start:end] = True\n",
        "        mask[start + 1 : end] = True\n",
        ("tests/sessions/test_trajectories.py::test_a_turn_that_two_branches_share_is_trained_in_the_first",),
    ),
    Fault(
        "a shared turn is trained in every branch",
        "sessions/samples.py",
        "        if turn.index in trained:\n",
        "        if turn.index in trained and turn.index < 0:\n",
        ("tests/sessions/test_trajectories.py",),
    ),
    Fault(
        "white space behind reasoning that the prompt closed is content",
        "rendering/streaming.py",
        'return form.gap.removeprefix(behind) if form.gap.startswith(behind) else ""',
        'return ""',
        (
            "tests/rendering/test_reader_laws.py"
            "::test_white_space_behind_reasoning_that_the_prompt_closes_is_the_templates",
        ),
    ),
    Fault(
        "white space that a template writes behind its text is content",
        "rendering/formats/frames.py",
        "if not found or THOUGHT in before + after or not before + after:",
        "if not found or THOUGHT in before + after or not (before + after).strip():",
        (f"{FORMATS}::test_law_6_parse_is_the_inverse_of_render_assistant[trailed]",),
    ),
    Fault(
        "a typed tag is read as the schema says",
        "rendering/formats/parameters.py",
        "return text if kind == self.type_word.text_word else typed_value(text)",
        "return typed_value(text, schema)",
        STATUSES,
    ),
    Fault(
        "what is behind whole lines of calls is dropped",
        "rendering/formats/json_calls.py",
        "if calls and not raw[position:].strip():",
        "if calls:",
        (f"{FORMATS}::test_what_stands_behind_whole_lines_of_calls_is_an_attempt_of_its_own",),
    ),
    Fault(
        "an object with two names is one call",
        "rendering/formats/parsed.py",
        "if len(fields) != 1:",
        "if not fields:",
        STATUSES,
    ),
    Fault(
        "an id before the name is taken for the name",
        "rendering/formats/json_calls.py",
        "if self.id_is_first:",
        "if False:",
        STATUSES,
    ),
    Fault(
        "a frame is not taken off",
        "rendering/formats/frames.py",
        "        return text[len(found) :]\n",
        "        return text\n",
        FRAMES,
    ),
    Fault(
        "a completion that is cut inside of a frame is lost",
        "rendering/formats/frames.py",
        '        rest = self._inner.push(self._decide(self._held)) if not self._is_decided else ""\n',
        '        rest = self._inner.push(self._decide("")) if not self._is_decided else ""\n',
        FRAMES,
    ),
    Fault(
        "Python arguments that cannot be read are replaced by none",
        "rendering/formats/pythonic.py",
        '        return ParsedToolCall(raw, CallStatus.INVALID_JSON, name["name"])\n',
        '        return ParsedToolCall(raw, CallStatus.OK, name["name"], "{}")\n',
        ("tests/rendering/test_python_calls.py::test_calls_in_a_block_have_their_status",),
    ),
    Fault(
        "a parameter that is given twice is read once",
        "rendering/formats/pythonic.py",
        '            if key is None or key["key"] in arguments:\n',
        "            if key is None:\n",
        ("tests/rendering/test_python_calls.py::test_calls_in_a_block_have_their_status",),
    ),
    Fault(
        "a number that JSON does not have is read",
        "rendering/formats/python_literals.py",
        "        if isinstance(value, float) and not math.isfinite(value):\n",
        "        if isinstance(value, float) and value == 0.125:\n",
        ("tests/rendering/test_python_calls.py::test_what_json_cannot_hold_is_no_literal",),
    ),
    Fault(
        "a block that the template opens only once is taken for text",
        "rendering/formats/blocks.py",
        "        if not begin or self._is_first or self._released:\n",
        "        if begin or self._is_first or self._released:\n",
        (f"{FORMATS}::test_law_6_parse_is_the_inverse_of_render_assistant[opened_once]",),
    ),
    Fault(
        "text in front of a header is lost",
        "rendering/formats/harmony.py",
        "        pieces = self._stray(header)\n",
        "        pieces: list[ReadPiece] = []\n",
        (f"{DISORDER}::test_text_where_none_belongs_is_kept",),
    ),
    Fault(
        "text in front of a block's first call is lost",
        "rendering/formats/parameters.py",
        "        if before.strip():\n",
        "        if before.strip() is None:\n",
        (f"{DISORDER}::test_text_where_none_belongs_is_kept",),
    ),
    Fault(
        "a tag that is opened over and over takes time with its square",
        "rendering/formats/parameters.py",
        "(?>(?P<key>.*?)",
        "(?:(?P<key>.*?)",
        (f"{DISORDER}::test_a_completion_that_is_opened_over_and_over_is_read_in_time",),
    ),
    Fault(
        "each piece of a call costs all that came before",
        "rendering/formats/bare_json.py",
        "        self._held.append(text)\n",
        '        self._held = ["".join(self._held) + text]\n',
        (f"{DISORDER}::test_a_long_call_in_small_pieces_is_read_in_time",),
    ),
    Fault(
        "half of a recipient's header is said",
        "rendering/formats/recipients.py",
        "        certain = len(held) - self._undecided(held, position)\n",
        "        certain = len(held)\n",
        (f"{FORMATS}::test_one_id_at_a_time_no_half_character_and_no_half_marker_is_said[recipients]",),
    ),
    Fault(
        "messages told apart by their first letter",
        "messages.py",
        '                self.content or "",\n',
        '                (self.content or "")[:1],\n',
        (
            "tests/sessions/test_session_laws.py::test_an_edited_message_opens_a_branch_at_the_deepest_sampled_message",
        ),
    ),
    Fault(
        "splice ends one id too late",
        "rendering/splice.py",
        "return CutSpan(first, last)",
        "return CutSpan(first, last + 1)",
        (
            f"{SPLICING}::test_what_is_sampled_as_the_template_writes_it_is_spliced_to_the_template_s_text[qwen_like]",
        ),
    ),
    Fault(
        "writers behind a splice counted from before it",
        "sessions/writers.py",
        "max(min(index, cut.end) - cut.start, 0)",
        "max(cut.end - cut.start, 0)",
        (f"{SPLICING}::test_splice_keeps_the_laws_whatever_is_sampled[qwen_like]",),
    ),
    Fault(
        "splice takes away what was not told to be reasoning",
        "rendering/splice.py",
        "if through <= self._agreed:",
        "if through < len(self._in_ours):",
        (f"{SPLICING}::test_reasoning_that_an_engine_told_otherwise_is_not_cut_by_guess",),
        needs_shared=True,
    ),
    Fault(
        "law 1 not held against splices",
        "rollouts/laws.py",
        "if turn.tokens.prompt_ids.starts_with(kept.tolist()):",
        "if len(kept):",
        (f"{SPLICING}::test_a_splice_that_is_not_what_it_says_breaks_a_law",),
    ),
    Fault(
        "text that needs parts is handed over as text",
        "rendering/template_messages.py",
        "for each in (form, with_parts):",
        "for each in (form,):",
        ("tests/rendering/test_text_as_parts.py::test_bridges_and_reading_are_exact[each part]",),
    ),
)
SHORT = ("separator newline dropped", "loss mask off by one")
"""What a test of the ordinary suite tries for real; it checks the whole list for being true."""


_NO_SHRINKING = """from hypothesis import Phase, settings

settings.register_profile(
    "faults", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("faults")
"""
"""That a fault is noticed is enough: making the example small takes minutes."""


def check_list() -> list[str]:
    """What is wrong with the list itself: edits whose place is gone, tests that are no files."""
    found = []
    for fault in FAULTS:
        count = (ROOT / "src" / "tokentrue" / fault.file).read_text(encoding="utf-8").count(fault.old)
        if count != 1:
            found.append(f"{fault.name!r}: its old text occurs {count} times in {fault.file}: {fault.old!r}")
        for test in fault.tests:
            file, _, rest = test.partition("::")
            name = rest.partition("[")[0]
            if name and f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8"):
                found.append(f"{fault.name!r}: {file} has no {name}")
    return found


def _copy(folder: Path) -> Path:
    """A copy of what tests need, with the shared data beside it."""
    copy = folder / "repository"
    ignore = shutil.ignore_patterns("__pycache__", ".mypy_cache", "*.pyc")
    for name in ("src", "tests", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "conftest.py").write_text(_NO_SHRINKING, encoding="utf-8")
    if SHARED.is_dir():
        (folder / "shared").symlink_to(SHARED.resolve())
    return copy


def _pytest(copy: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def try_fault(fault: Fault) -> tuple[bool, str]:
    """Whether the tests of a fault notice it, and what pytest said last."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = _copy(Path(folder))
        path = copy / "src" / "tokentrue" / fault.file
        path.write_text(path.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        run = _pytest(copy, fault.tests)
    lines = (run.stdout + run.stderr).strip().splitlines() or ["no output"]
    return run.returncode == TESTS_FAILED, lines[-1]


def try_unchanged(faults: Sequence[Fault]) -> str:
    """ "" when all tests of `faults` pass on an unchanged copy, else what pytest said."""
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        run = _pytest(_copy(Path(folder)), tests)
    return "" if run.returncode == 0 else run.stdout + run.stderr


def main() -> None:
    """Try the faults and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only faults with one of these words in their name"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if not options.only or any(word in fault.name for word in options.only)]
    if options.list:
        print("\n".join(f"{fault.name}: {fault.file}" for fault in faults))
        return
    wrong = check_list()
    if wrong:
        sys.exit("\n".join(wrong))
    left_out = [fault for fault in faults if fault.needs_shared and not SHARED.is_dir()]
    tried = [fault for fault in faults if fault not in left_out]
    for fault in left_out:
        print(f"skipped  {fault.name}: {SHARED} is absent")
    said = try_unchanged(tried)
    if said:
        sys.exit(f"the tests fail on an unchanged copy:\n{said}")
    survived = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, (is_caught, last) in zip(tried, pool.map(try_fault, tried), strict=True):
            survived += not is_caught
            print(f"{'caught  ' if is_caught else 'SURVIVED'} {fault.name}: {last}", flush=True)
    print(f"{len(tried) - survived} of {len(tried)} faults caught, {survived} survived, {len(left_out)} skipped")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
