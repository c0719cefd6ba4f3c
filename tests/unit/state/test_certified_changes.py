"""Changes of one copy of a host's certified data, applied to another copy."""

from datetime import UTC, datetime

import pytest

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import ActivitySource, HostId
from imbue.mngr_vps_docker.state.certified_changes import change_between

BEFORE = CertifiedHostData(
    host_id=HostId.generate(),
    host_name="h",
    created_at=datetime.now(UTC),
    updated_at=datetime.now(UTC),
    generated_work_dirs=("/a", "/b"),
    plugin={"one": {"x": 1}, "two": {"y": 2}},
)
CHANGES: list[dict[str, object]] = [
    {"idle_timeout_seconds": 7},
    {"activity_sources": (ActivitySource.BOOT,)},
    {"generated_work_dirs": ("/a", "/b", "/c")},
    {"generated_work_dirs": ("/b",)},
    {"generated_source_dirs": ("/s",)},
    {"plugin": {"one": {"x": 1}, "two": {"y": 2}, "three": {}}},
    {"plugin": {"one": {"x": 9}, "two": {"y": 2}}},
    {"plugin": {"one": {"x": 1}}},
]


@pytest.mark.parametrize("first", CHANGES)
def test_changes_of_two_copies_are_both_made_in_either_order(first: dict[str, object]) -> None:
    for second in CHANGES:
        changes = [change_between(BEFORE, BEFORE.model_copy(update=update)) for update in (first, second)]
        one_way = changes[1](changes[0](BEFORE))
        if first == second:
            assert one_way == BEFORE.model_copy(update=first)
        elif not {*first} & {*second}:
            assert one_way == BEFORE.model_copy(update=first | second)
        assert one_way == changes[0](changes[1](BEFORE))


def test_members_added_and_removed_by_two_copies() -> None:
    added = change_between(BEFORE, BEFORE.model_copy(update={"generated_work_dirs": ("/a", "/b", "/c")}))
    removed = change_between(BEFORE, BEFORE.model_copy(update={"generated_work_dirs": ("/b",)}))
    assert added(removed(BEFORE)).generated_work_dirs == ("/b", "/c")
    without = change_between(BEFORE, BEFORE.model_copy(update={"plugin": {"one": {"x": 1}}}))
    changed = change_between(BEFORE, BEFORE.model_copy(update={"plugin": {"one": {"x": 9}, "two": {"y": 2}}}))
    assert without(changed(BEFORE)).plugin == {"one": {"x": 9}}
