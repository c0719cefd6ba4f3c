"""Local records survive, and their locks tell whether a process works on the host."""

import fcntl
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.keys import ProviderKeys
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord, LocalHostStore
from support.builders import local_record_of


@pytest.fixture
def local_store(tmp_path: Path) -> LocalHostStore:
    return LocalHostStore(tmp_path / "hosts")


def entry(name: str = "h1") -> LocalHostRecord:
    return local_record_of(HostId.generate(), HostPhase.CREATING, host_name=name)


def test_an_entry_is_read_back_as_it_was_written(local_store: LocalHostStore) -> None:
    written = local_store.write(entry())
    assert local_store.read(written.host_id) == written
    assert local_store.read_all() == [written]


def test_an_unknown_host_has_no_local_record(local_store: LocalHostStore) -> None:
    assert local_store.read(HostId.generate()) is None
    assert local_store.update(HostId.generate(), lambda known: replace(known, vps_ip="192.0.2.1")) is None
    assert local_store.read_all() == []


def test_an_update_changes_only_what_it_names(local_store: LocalHostStore) -> None:
    written = local_store.write(entry())
    local_store.update(written.host_id, lambda known: replace(known, vps_ip="192.0.2.1"))
    assert local_store.read(written.host_id) == written.model_copy(update={"vps_ip": "192.0.2.1"})


def test_an_entry_that_is_a_folder_hides_no_other(local_store: LocalHostStore, tmp_path: Path) -> None:
    folder, whole = local_store.write(entry("a")), local_store.write(entry("b"))
    path = tmp_path / "hosts" / folder.host_id / "host.json"
    path.unlink()
    path.mkdir()
    found = {entry.host_id: entry.failure_reason for entry in local_store.read_all()}
    assert found.keys() == {folder.host_id, whole.host_id}
    assert f"{path} cannot be read (Is a directory)" in (found[folder.host_id] or "")
    local_store.write(folder)
    assert path.is_dir()


def test_an_unreadable_entry_hides_no_other_and_names_its_file(local_store: LocalHostStore, tmp_path: Path) -> None:
    torn, whole = local_store.write(entry("a")), local_store.write(entry("b"))
    path = tmp_path / "hosts" / torn.host_id / "host.json"
    path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "hosts" / "host-of-nobody").mkdir()
    (tmp_path / "hosts" / "host-of-nobody" / "host.json").touch()
    found = {entry.host_id: entry for entry in local_store.read_all()}
    assert found.keys() == {torn.host_id, whole.host_id}
    assert (found[whole.host_id], found[torn.host_id].phase) == (whole, HostPhase.READY)
    assert str(path) in (found[torn.host_id].failure_reason or "")


def test_an_update_leaves_an_unreadable_entry_alone(local_store: LocalHostStore, tmp_path: Path) -> None:
    written = local_store.write(entry())
    path = tmp_path / "hosts" / written.host_id / "host.json"
    path.write_bytes(b"torn")
    assert local_store.update(written.host_id, lambda known: replace(known, vps_ip="192.0.2.1")) is None
    local_store.write(written)
    assert path.read_bytes() == b"torn"
    path.unlink()
    assert local_store.read(written.host_id) is None
    local_store.write(written)
    assert local_store.read(written.host_id) == written


@pytest.mark.parametrize("moment", ["2026-01-02T03:04:05", "2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00"])
def test_a_moment_is_in_utc_also_in_an_entry_that_does_not_say_so(
    local_store: LocalHostStore, tmp_path: Path, moment: str
) -> None:
    written = local_store.write(entry())
    path = tmp_path / "hosts" / written.host_id / "host.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created_at": moment}))
    (read,) = local_store.read_all()
    assert read.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_only_its_user_can_read_it(local_store: LocalHostStore, tmp_path: Path) -> None:
    written = local_store.write(entry())
    path = tmp_path / "hosts" / written.host_id / "host.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_host_has_a_live_owner_only_while_its_process_lives(local_store: LocalHostStore, tmp_path: Path) -> None:
    written = local_store.write(entry())
    holder = (
        "import sys; from pathlib import Path; from imbue.mngr_vps_docker.state.local_store import LocalHostStore\n"
        f"with LocalHostStore(Path({str(tmp_path / 'hosts')!r})).ownership({str(written.host_id)!r}):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert local_store.is_owned(written.host_id)
        process.kill()
        process.wait(10)
    assert not local_store.is_owned(written.host_id)


def test_forgetting_a_host_leaves_nothing(local_store: LocalHostStore, tmp_path: Path) -> None:
    written = local_store.write(entry())
    ProviderKeys(tmp_path).create_vps_host_key(written.host_id)
    half = tmp_path / "hosts" / f".{HostId.generate()}.0.gone"
    half.mkdir()
    (half / "vps_host_key").touch()
    local_store.forget(written.host_id)
    local_store.forget(written.host_id)
    assert list((tmp_path / "hosts").iterdir()) == []


def test_nothing_that_comes_too_late_brings_a_forgotten_host_back(local_store: LocalHostStore, tmp_path: Path) -> None:
    host_id = local_store.write(entry()).host_id
    local_store.forget(host_id)
    assert local_store.update(host_id, lambda known: replace(known, vps_ip="192.0.2.1")) is None
    assert not local_store.is_owned(host_id)
    with local_store.exclusive(host_id, "power") as is_known:
        assert not is_known
    assert list((tmp_path / "hosts").iterdir()) == []


def test_waiting_for_a_host_that_is_forgotten_fails(local_store: LocalHostStore) -> None:
    host_id = local_store.write(entry()).host_id

    def wait() -> bool:
        with local_store.exclusive(host_id, "power") as is_known:
            return is_known

    with ThreadPoolExecutor() as pool:
        with local_store.exclusive(host_id, "power") as is_known:
            assert is_known
            waiting = pool.submit(wait)
            local_store.forget(host_id)
        assert waiting.result(30) is False


def test_a_host_may_be_forgotten_while_others_look_at_it(local_store: LocalHostStore) -> None:
    known = entry()
    ends = threading.Event()

    def look() -> None:
        while not ends.is_set():
            local_store.read_all()
            local_store.update(known.host_id, lambda known: replace(known, vps_ip="192.0.2.1"))
            local_store.is_owned(known.host_id)

    with ThreadPoolExecutor() as pool:
        lookers = [pool.submit(look) for _ in range(3)]
        try:
            for _ in range(60):
                local_store.write(known)
                local_store.forget(known.host_id)
        finally:
            ends.set()
        for looker in lookers:
            looker.result(30)
    assert local_store.read(known.host_id) is None


def test_asking_for_an_owner_is_not_owning(local_store: LocalHostStore, tmp_path: Path) -> None:
    written = local_store.write(entry())
    with local_store.ownership(written.host_id):
        pass
    with (tmp_path / "hosts" / written.host_id / "owner.lock").open() as asked_by_another:
        fcntl.flock(asked_by_another, fcntl.LOCK_SH)
        assert not local_store.is_owned(written.host_id)


def test_asking_for_the_owner_of_an_unknown_host_leaves_nothing_behind(
    local_store: LocalHostStore, tmp_path: Path
) -> None:
    assert not local_store.is_owned(HostId.generate())
    assert list(tmp_path.iterdir()) == []
