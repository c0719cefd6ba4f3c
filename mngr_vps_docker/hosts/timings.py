"""How long a VPS is waited for that may not answer."""

from dataclasses import dataclass
from typing import Final

# For a command on a host that was asked for; how long its VPS may take to show a sign of life is a setting.
ANSWER_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one VPS is waited for: until it shows that it is there, and for its whole answer."""

    connect_seconds: float
    answer_seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a listing waits for a VPS, and for one that was silent when it was last asked.

    A VPS that does not answer in time is shown as it was last seen. A command on its host waits for it longer.
    """

    listing: Patience = Patience(connect_seconds=3.0, answer_seconds=8.0)
    listing_of_silent: Patience = Patience(connect_seconds=2.0, answer_seconds=2.5)
