"""How long is waited for clouds and VPSes that may not answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one VPS is waited for: until it shows that it is there, and for its whole answer."""

    connect_seconds: float
    answer_seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """The waits of a provider. Tests give it shorter ones.

    A VPS that does not answer a listing in time, or that was silent when it was last asked, is shown as it was last
    seen. A command on its host waits for it longer.
    """

    listing: Patience = Patience(connect_seconds=3.0, answer_seconds=8.0)
    listing_of_silent: Patience = Patience(connect_seconds=2.0, answer_seconds=2.5)
    command_answer_seconds: float = 120.0
    """For the answer of a VPS to a command on its host; how long it may take to show a sign of life is a setting."""
    appearing_seconds: float = 300.0
    """Until a cloud shows what it was asked to make, also if the answer was lost on the way."""
    listing_lag_seconds: float = 10.0
    """That a cloud's listing may lag behind its other answers, as long as it is worth waiting for."""
    gone_seconds: float = 60.0
    """For a destroyed instance to go. Most clouds report it for some seconds; after a minute it is still billed."""
    cloud_poll_seconds: float = 0.5
    """Between two questions to a cloud."""
    key_retry_pauses_seconds: tuple[float, ...] = (1.0, 3.0)
    """Before each further try to take a key from the cloud: an outage must not fail a host that is nearly finished."""
    use_seconds: float = 10.0
    """That destroying a host waits for other processes of this machine that are changing it."""
    unlisted_snapshot_seconds: float = 3600.0
    """That an image of no record is kept, since another machine may be about to list it."""
