"""A client that fails, is slow or answers wrongly where a test says so, for tests of providers and of this package."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from inspect import isfunction
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr

from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, VpsSnapshotId
from imbue.mngr_vps_docker.vps_client import VpsClientInterface, VpsInstanceInfo, VpsSnapshotInfo, VpsSshKeyInfo


class FaultMoment(Enum):
    """When a call fails: before it reaches the cloud, or after the cloud did it and the answer was lost."""

    BEFORE = auto()
    ANSWER_LOST = auto()


@dataclass(slots=True)
class Fault:
    """What goes wrong with every call named ``call``, or with the first ``times`` of them; ``happened`` counts.

    The call begins ``delay_seconds`` late. It raises ``error``, if there is one; else its answer is what
    ``transform`` makes of the real one.
    """

    call: str
    error: BaseException | None = None
    moment: FaultMoment = FaultMoment.BEFORE
    times: int | None = None
    delay_seconds: float = 0.0
    transform: Callable[[Any], Any] | None = None
    happened: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise ValueError(f"A client has no call '{self.call}'; it has {', '.join(sorted(CALLS))}")
        if self.error is not None and self.transform is not None:
            raise ValueError(f"A call of '{self.call}' cannot both fail and answer: give an error or a transform")


class FaultyClient(VpsClientInterface):
    """The client ``real``, with ``faults``. ``calls`` names every call in order, failed ones too.

    A fault of a call that does not exist is refused, and ``check_that_all_happened`` fails for a fault that never
    happened: a test cannot pass because the call was not made.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    real: VpsClientInterface = Field(description="The client that does the work")
    faults: tuple[Fault, ...] = Field(default=(), description="What goes wrong")
    listing_lag_calls: int = Field(
        default=0, ge=0, description="find_instances answers as of so many calls ago (at most as of the first call)"
    )
    _calls: list[str] = PrivateAttr(default_factory=list)
    _listings: deque[Sequence[VpsInstanceInfo]] = PrivateAttr(default_factory=deque)

    @property
    def calls(self) -> tuple[str, ...]:
        """The names of all calls so far."""
        return tuple(self._calls)

    def check_that_all_happened(self) -> None:
        """Raise AssertionError with the faults that have not happened."""
        missing = [fault.call for fault in self.faults if not fault.happened]
        assert not missing, f"no call of {', '.join(missing)}; the calls were {', '.join(self._calls) or 'none'}"

    @property
    def max_user_data_bytes(self) -> int:
        return self.real.max_user_data_bytes

    def create_instance(self, *arguments: Any, **order: Any) -> VpsInstanceId:
        return self._call("create_instance", lambda: self.real.create_instance(*arguments, **order))

    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        self._call("destroy_instance", lambda: self.real.destroy_instance(instance_id))

    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        return self._call("get_instance_status", lambda: self.real.get_instance_status(instance_id))

    def get_instance_ip(self, instance_id: VpsInstanceId) -> str:
        return self._call("get_instance_ip", lambda: self.real.get_instance_ip(instance_id))

    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        return self._call(
            "wait_for_instance_active", lambda: self.real.wait_for_instance_active(instance_id, timeout_seconds)
        )

    def create_snapshot(self, instance_id: VpsInstanceId, description: str) -> VpsSnapshotId:
        return self._call("create_snapshot", lambda: self.real.create_snapshot(instance_id, description))

    def delete_snapshot(self, snapshot_id: VpsSnapshotId) -> None:
        self._call("delete_snapshot", lambda: self.real.delete_snapshot(snapshot_id))

    def list_snapshots(self) -> list[VpsSnapshotInfo]:
        return self._call("list_snapshots", self.real.list_snapshots)

    def upload_ssh_key(self, name: str, public_key: str) -> str:
        return self._call("upload_ssh_key", lambda: self.real.upload_ssh_key(name, public_key))

    def delete_ssh_key(self, key_id: str) -> None:
        self._call("delete_ssh_key", lambda: self.real.delete_ssh_key(key_id))

    def list_ssh_keys(self) -> list[VpsSshKeyInfo]:
        return self._call("list_ssh_keys", self.real.list_ssh_keys)

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo] | None:
        return self._call("find_instances", lambda: self._find_instances(tags))

    def _find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo] | None:
        if not self.listing_lag_calls:
            return self.real.find_instances(tags)
        present = self.real.find_instances({})
        if present is None:
            return None
        self._listings.append(present)
        if len(self._listings) > self.listing_lag_calls + 1:
            self._listings.popleft()
        return [instance for instance in self._listings[0] if tags.items() <= instance.tags.items()]

    def _call[Answer](self, name: str, act: Callable[[], Answer]) -> Answer:
        self._calls.append(name)
        for fault in self.faults:
            if fault.call == name and (fault.times is None or fault.happened < fault.times):
                break
        else:
            return act()
        time.sleep(fault.delay_seconds)
        is_unheard = fault.error is not None and fault.moment is FaultMoment.BEFORE
        answer: Any = None if is_unheard else act()
        fault.happened += 1
        if fault.error is not None:
            raise fault.error
        transformed: Answer = answer if fault.transform is None else fault.transform(answer)
        return transformed


CALLS = frozenset(
    name for name, member in vars(VpsClientInterface).items() if isfunction(member) and not name.startswith("_")
)
