"""Hosts that an earlier version made keep working: its files are read, and written back byte for byte.

``files_of_eb9d240`` holds what the code at commit eb9d240 wrote: this machine's ``host.json``, and the record on the
VPS, with fields that are unknown to both versions.
"""

from pathlib import Path

from imbue.mngr.primitives import HostId, HostState
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostStore
from imbue.mngr_vps_docker.state.record import decode_record, encode_record

FILES = Path(__file__).with_name("files_of_eb9d240")
HOST_ID = HostId("host-0123456789abcdef0123456789abcdef")


def test_what_this_machine_keeps_of_a_host_is_read_and_written_as_before(tmp_path: Path) -> None:
    path = tmp_path / HOST_ID / "host.json"
    path.parent.mkdir()
    written = (FILES / "host.json").read_bytes()
    path.write_bytes(written)
    store = LocalHostStore(tmp_path)
    known = store.read(HOST_ID)
    assert known is not None and known.record is not None and known.unreachable is not None
    assert (known.phase, known.state, known.vps_ip) == (HostPhase.READY, HostState.PAUSED, "192.0.2.1")
    assert known.record.certified_host_data.user_tags == {"team": "a"}
    store.update(HOST_ID, lambda known: replace(known, region="other"))
    assert b'"region": "other"' in path.read_bytes()
    store.update(HOST_ID, lambda known: replace(known, region="r"))
    assert path.read_bytes() == written


def test_a_record_is_read_and_written_as_before() -> None:
    written = (FILES / "record.json").read_bytes()
    record = decode_record(written, HOST_ID)
    assert record.config is not None and record.config.start_args == ("--env=TOKEN=abc", "--cpus=2")
    assert encode_record(record) == written
