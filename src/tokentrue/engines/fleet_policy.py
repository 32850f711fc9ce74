"""How a fleet treats its endpoints, and what it knows of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tokentrue.engines.gate import GateLimits
from tokentrue.errors import ConfigError


class Health(Enum):
    """The state of one endpoint."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """How a fleet treats its endpoints.

    Args:
        limits: Of each endpoint's gate.
        failures: So many in a row eject an endpoint.
        ejected_s, longest_ejected_s: The first pause, and the longest; it doubles from one ejection to the next.
        attempts: Endpoints that one request may be offered to.
        wait_s: The longest a request waits for a place.
        outage_s: The longest a request waits while no endpoint is healthy.

    Raises:
        ConfigError: A number is out of range.
    """

    limits: GateLimits = field(default_factory=GateLimits)
    failures: int = 3
    ejected_s: float = 5.0
    longest_ejected_s: float = 120.0
    attempts: int = 4
    wait_s: float = 3600.0
    outage_s: float = 60.0

    def __post_init__(self) -> None:
        if self.failures < 1 or self.attempts < 1 or self.wait_s <= 0 or self.outage_s < 0:
            raise ConfigError(f"failures, attempts >= 1, wait_s > 0 and outage_s >= 0 are needed: {self!r}")
        if not 0 < self.ejected_s <= self.longest_ejected_s:
            raise ConfigError(f"need 0 < ejected_s <= longest_ejected_s: {self!r}")


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """What is known of one endpoint.

    Args:
        sent: Requests that it was given, and `failed`: of these, those that said it is sick.
        last_error: Of the last failure; "" when there was none.
    """

    name: str
    health: Health
    in_flight: int
    waiting: int
    limit: int
    sent: int
    failed: int
    last_error: str
