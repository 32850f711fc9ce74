"""What a run of `check_engine` found: one row for each check, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from tokentrue.errors import EngineError
from tokentrue.generation import EngineInfo


class Outcome(Enum):
    """What a check found. Not offered is neither good nor bad: the row says why nothing could be checked."""

    HOLDS = "holds"
    BREAKS = "breaks"
    NOT_OFFERED = "not offered"


class Law(Enum):
    """Where a promise is written down: a law of DESIGN, or the contract of `Engine`."""

    VERBATIM = "1 verbatim"
    ALIGNED = "3 aligned"
    EVIDENCE = "4 evidence"
    COST = "8 cost"
    SAMPLING = "contract: sampling parameters do what they say"
    LIMITS = "contract: the context limit"
    ERRORS = "contract: typed errors"
    CANCELLING = "contract: cancelling stops the sampling"
    DESCRIBE = "contract: the engine says what it is"


class BrokenPromiseError(EngineError):
    """A check, or a whole report, found that the engine does not keep a promise."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw when the promise holds.

    Args:
        evidence: One sentence with the numbers in it.
        numbers: The same numbers by name.
    """

    evidence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check of one engine; `seconds` is how long it took."""

    name: str
    law: Law
    outcome: Outcome
    evidence: str
    numbers: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Every check of one engine, in the order in which they were made.

    Args:
        info: What the engine says of itself; None when it could not be asked.
    """

    info: EngineInfo | None
    rows: tuple[CheckRow, ...]

    def row(self, name: str) -> CheckRow:
        """The row of that name.

        Raises:
            KeyError: No check of that name was made.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no check {name!r} was made; there are {', '.join(row.name for row in self.rows)}")

    def broken(self) -> tuple[CheckRow, ...]:
        """The rows that break."""
        return tuple(row for row in self.rows if row.outcome is Outcome.BREAKS)

    def raise_if_broken(self) -> None:
        """Say every broken promise at once.

        Raises:
            BrokenPromiseError: At least one row breaks.
        """
        broken = self.broken()
        if broken:
            lines = "".join(f"\n  {row.name} (law {row.law.value}): {row.evidence}" for row in broken)
            raise BrokenPromiseError(f"{len(broken)} of {len(self.rows)} promises are broken:{lines}")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rows = [{**asdict(row), "law": row.law.value, "outcome": row.outcome.value} for row in self.rows]
        engine = None
        if self.info is not None:
            engine = {**asdict(self.info), "logprobs_mode": self.info.logprobs_mode.value}
        return {"engine": engine, "checks": rows}

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        return "\n".join(
            f"{row.outcome.value:<11}  {row.name:<{width}}  {row.seconds:6.2f} s  {row.evidence}"
            for row in self.rows
        )
