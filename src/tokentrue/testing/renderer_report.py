"""What `check_renderer` found: per check what passed, what was refused and why, and the smallest that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from tokentrue.testing.renderer_cases import RendererCase


class RendererCheck(Enum):
    """One promise of the contract."""

    STOPS = "the stop ids are ids, and there are some"
    STABLE = "the same messages give the same ids, inside the vocabulary"
    SPANS = "the writers of ids tile them, and every new message wrote some"
    VERBATIM = "law 1: a bridge begins with prompt and completion"
    FAITHFUL = "law 2: a bridge ends as its own full rendering does"
    JUNCTION = "the junction says how sampling ended"
    REFUSES = "a stop in the middle, nothing new, and a message that was not sampled are refused with a reason"
    INVERSE = "law 6: reading is the inverse of writing"
    CUT_SHORT = "any beginning of a completion is read without raising, and makes up no call"
    PURE = "reading changes no ids, and gives the same each time"
    THREADS = "several threads get what one gets"


@dataclass(frozen=True, slots=True)
class Failure:
    """One promise broken: the smallest case found, and what was seen."""

    case: RendererCase | None
    told: str

    def __str__(self) -> str:
        return self.told if self.case is None else f"{self.told}\n  {self.case}"


@dataclass(slots=True)
class CheckResult:
    """What one check found.

    Args:
        passed: How many times it held.
        refused: Reasons for which there was nothing to check, by how often.
        failed: How many times it did not hold.
        failure: The first of those times, made as small as it goes.
    """

    check: RendererCheck
    passed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failure: Failure | None = None


class ConformanceError(AssertionError):
    """A renderer does not keep its contract."""


@dataclass(frozen=True, slots=True)
class RendererReport:
    """The results of every check, in the order of `RendererCheck`."""

    results: tuple[CheckResult, ...]

    def __getitem__(self, check: RendererCheck) -> CheckResult:
        return next(result for result in self.results if result.check is check)

    @property
    def failed(self) -> tuple[RendererCheck, ...]:
        """The checks that failed at least once."""
        return tuple(result.check for result in self.results if result.failed)

    @property
    def untried(self) -> tuple[RendererCheck, ...]:
        """The checks that neither held nor failed once: everything was refused."""
        return tuple(result.check for result in self.results if not result.failed and not result.passed)

    def raise_if_broken(self, may_be_untried: Collection[RendererCheck] = ()) -> None:
        """Pass only when no check failed and each was tried, except for those named.

        Raises:
            ConformanceError: With the whole report as its message.
        """
        if self.failed or set(self.untried) - set(may_be_untried):
            raise ConformanceError(str(self))

    def __str__(self) -> str:
        lines = []
        for result in self.results:
            state = "FAILED" if result.failed else "passed" if result.passed else "untried"
            counts = f"{result.passed} held, {result.failed} failed, {result.refused.total()} not tried"
            lines.append(f"{state:8}{result.check.name}: {result.check.value} ({counts})")
            lines += [f"    not tried, {count} times: {why}" for why, count in result.refused.most_common(4)]
            if result.failure is not None:
                lines.append("    " + str(result.failure).replace("\n", "\n    "))
        return "\n".join(lines)
