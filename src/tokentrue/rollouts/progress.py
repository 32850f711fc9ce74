"""Progress for a person: a small protocol, and silence."""

from __future__ import annotations

from typing import Protocol

from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord


class Progress(Protocol):
    """Is told what a run does. Called on the event loop: returns at once and never raises."""

    def started(self, episodes: int) -> None:
        """The run begins."""
        ...

    def turn_done(self, turn: TurnRecord) -> None:
        """A turn ended."""
        ...

    def episode_done(self, episode: EpisodeRecord) -> None:
        """An episode ended."""
        ...

    def finished(self) -> None:
        """The run is over, by itself or by an error."""
        ...


class SilentProgress:
    """Says nothing: what the library does unless asked otherwise."""

    def started(self, episodes: int) -> None:
        """Nothing."""

    def turn_done(self, turn: TurnRecord) -> None:
        """Nothing."""

    def episode_done(self, episode: EpisodeRecord) -> None:
        """Nothing."""

    def finished(self) -> None:
        """Nothing."""
