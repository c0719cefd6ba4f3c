import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord, VpsHostConfig
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.state.agent_data import decode_agent_data
from imbue.mngr_vps_docker.state.record import decode_record, encode_agent_data, encode_record

_HOST_ID = HostId("host-0123456789abcdef0123456789abcdef")
_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_INTEGERS = st.integers(-(2**63), 2**63 - 1)
_JSON = st.recursive(
    st.none() | st.booleans() | _INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


def _certified(**changes: Any) -> CertifiedHostData:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return CertifiedHostData(host_id=_HOST_ID, host_name="h1", created_at=now, updated_at=now, **changes)


def _version_0() -> dict[str, Any]:
    """As a package without schema_version wrote it: mngr's computed idle_mode is among the certified data."""
    return {
        "certified_host_data": {
            "idle_timeout_seconds": 800,
            "activity_sources": ["BOOT", "SSH"],
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z",
            "idle_mode": "SSH",
            "host_id": _HOST_ID,
            "host_name": "h1",
            "user_tags": {"k": "v"},
            "snapshots": [{"id": "sha256:1", "name": "s1", "created_at": "2026-01-02T03:04:05+00:00"}],
        },
        "vps_ip": "2001:db8::1",
        "ssh_host_public_key": "ssh-ed25519 AAAA",
        "container_ssh_host_public_key": "ssh-ed25519 BBBB",
        "config": {
            "vps_instance_id": "i-1",
            "region": "ewr",
            "plan": "vc2-1c-1gb",
            "os_id": 2136,
            "start_args": ["--cpus", "2"],
            "image": "debian",
            "container_name": "mngr-h1",
            "volume_name": "mngr-host-vol-1",
        },
        "container_id": "0a1b",
    }


def _with_new_field(value: str) -> bytes:
    return f'{json.dumps(_version_0())[:-1]}, "new": {value}}}'.encode()


def test_a_record_of_version_0_is_read_and_becomes_version_1_when_written() -> None:
    record = decode_record(json.dumps(_version_0()).encode(), _HOST_ID)
    assert record.schema_version == 0
    assert record.config is not None and (record.config.os_id, record.config.vps_ssh_key_id) == (2136, None)
    again = decode_record(encode_record(record), _HOST_ID)
    assert again.schema_version == 1
    assert again == record.model_copy(update={"schema_version": 1})


def test_what_newer_writers_added_is_kept_at_every_level() -> None:
    data = _version_0() | {"schema_version": 7, "new_top": [1]}
    data["config"]["new_config"] = {"a": 1}
    data["certified_host_data"]["new_certified"] = "x"
    written = json.loads(encode_record(decode_record(json.dumps(data).encode(), _HOST_ID)))
    assert (written["schema_version"], written["new_top"]) == (7, [1])
    assert written["config"]["new_config"] == {"a": 1}
    assert written["certified_host_data"]["new_certified"] == "x"
    assert "unknown_certified_fields" not in written


def test_what_is_read_can_be_written_and_compared() -> None:
    content = _with_new_field(r'"\ud800x"').replace(b"05Z", b"05")
    record = decode_record(content, _HOST_ID)
    record.model_dump_json()
    assert record.certified_host_data.updated_at < datetime.now(UTC)


def test_a_failed_host_has_certified_data_only() -> None:
    record = VpsDockerHostRecord(certified_host_data=_certified(failure_reason="no Docker"))
    assert decode_record(encode_record(record), _HOST_ID).certified_host_data.failure_reason == "no Docker"


@given(_TEXT, st.dictionaries(_TEXT, _TEXT, max_size=3), _INTEGERS | _TEXT, st.lists(_TEXT, max_size=3))
def test_any_text_survives_in_a_record(name: str, tags: dict[str, str], os_id: int | str, args: list[str]) -> None:
    record = VpsDockerHostRecord(
        certified_host_data=_certified(user_tags=tags, build_log=name),
        config=VpsHostConfig(
            vps_instance_id=VpsInstanceId("i-1"),
            region=name,
            plan="p",
            os_id=os_id,
            start_args=tuple(args),
            image=name,
            container_name=name,
            volume_name=name,
        ),
        schema_version=1,
    )
    assert decode_record(encode_record(record), _HOST_ID) == record


@given(st.dictionaries(_TEXT, _JSON))
def test_any_agent_data_survives(data: dict[str, Any]) -> None:
    whole = data | {"id": f"agent-{'a' * 32}", "name": "a1"}
    known = {"type", "command", "labels", "work_dir", "create_time", "permissions"}
    if not data.keys() & known:
        assert decode_agent_data(encode_agent_data(whole), expected_id=whole["id"]) == whole


def test_agent_data_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(HostRecordError, match=r"a1.*cannot be written as JSON"):
        encode_agent_data({"id": "a1", "x": object()})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        json.dumps(_version_0()).encode("utf-16"),
        b"[" * 100_000,
        *(_with_new_field(value) for value in ("[" * 300 + "]" * 300, "9" * 20, "9" * 5000, "NaN", "1e999")),
        *(
            json.dumps(_version_0() | {"vps_ip": address}).encode()
            for address in ("*", "192.0.2.?", "a\n* ssh-ed25519 A", "a,b", "")
        ),
        *(
            json.dumps(_version_0()).replace("sha256:1", image).encode()
            for image in (" ", "--privileged", "a b", "a-" * 100_000, f"a@sha256:{'0' * 1000}")
        ),
        json.dumps(_version_0()).replace("2026-01-02T03:04:05+00:00", "never").encode(),
        json.dumps(_version_0()).replace("2026-01-02T03:04:05Z", "0001-01-01T00:00:00").encode(),
        b"{}",
        b'{"certified_host_data": 1}',
        json.dumps(_version_0() | {"vps_ip": 7}).encode(),
        json.dumps(_version_0()).replace('"k": "v"', r'"a\nb": 1').encode(),
        json.dumps(_version_0()).encode()[:-1],
        json.dumps(_version_0()).replace("0123456789abcdef", "1123456789abcdef").encode(),
        json.dumps(_version_0()).replace(_HOST_ID, "not-an-id").encode(),
    ],
)
def test_damaged_and_foreign_records_are_told_in_one_line(content: bytes) -> None:
    with pytest.raises(HostRecordError) as raised:
        decode_record(content, _HOST_ID)
    assert "\n" not in str(raised.value)
