"""What this machine remembers of a host survives, and says whether somebody is working on it."""

import fcntl
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from datetime import datetime
from pathlib import Path

import pytest

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.journal import HostJournal
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.keys import ProviderKeys


@pytest.fixture
def journal(tmp_path: Path) -> HostJournal:
    return HostJournal(tmp_path / "hosts")


def entry(name: str = "h1") -> JournalEntry:
    return JournalEntry(
        host_id=HostId.generate(), host_name=name, phase=HostPhase.CREATING, created_at=datetime.now(UTC)
    )


def test_an_entry_is_read_back_as_it_was_written(journal: HostJournal) -> None:
    written = journal.write(entry())
    assert journal.read(written.host_id) == written
    assert journal.read_all() == [written]


def test_an_unknown_host_is_none(journal: HostJournal) -> None:
    assert journal.read(HostId.generate()) is None
    assert journal.update(HostId.generate(), vps_ip="192.0.2.1") is None
    assert journal.read_all() == []


def test_an_update_changes_only_what_it_names(journal: HostJournal) -> None:
    written = journal.write(entry())
    journal.update(written.host_id, vps_ip="192.0.2.1")
    assert journal.read(written.host_id) == written.model_copy(update={"vps_ip": "192.0.2.1"})


def test_a_torn_entry_hides_no_other_and_its_host_is_not_forgotten(journal: HostJournal, tmp_path: Path) -> None:
    torn, whole = journal.write(entry("a")), journal.write(entry("b"))
    path = tmp_path / "hosts" / torn.host_id / "host.json"
    path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "hosts" / "host-of-nobody").mkdir()
    (tmp_path / "hosts" / "host-of-nobody" / "host.json").touch()
    assert journal.read_all() == [whole]
    (stand_in,) = journal.stand_ins()
    assert stand_in.host_id == torn.host_id
    assert str(path) in (stand_in.failure_reason or "")


def test_only_a_write_touches_a_torn_entry_and_keeps_it_beside(journal: HostJournal, tmp_path: Path) -> None:
    written = journal.write(entry())
    path = tmp_path / "hosts" / written.host_id / "host.json"
    path.write_bytes(b"torn")
    assert journal.read(written.host_id) is None
    assert journal.update(written.host_id, vps_ip="192.0.2.1") is None
    assert path.read_bytes() == b"torn"
    journal.write(written)
    assert (journal.read(written.host_id), journal.stand_ins()) == (written, [])
    assert path.with_suffix(".unreadable").read_bytes() == b"torn"


@pytest.mark.parametrize("moment", ["2026-01-02T03:04:05", "2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00"])
def test_a_moment_is_in_utc_also_in_an_entry_that_does_not_say_so(
    journal: HostJournal, tmp_path: Path, moment: str
) -> None:
    written = journal.write(entry())
    path = tmp_path / "hosts" / written.host_id / "host.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created_at": moment}))
    (read,) = journal.read_all()
    assert read.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_nobody_else_can_read_it(journal: HostJournal, tmp_path: Path) -> None:
    written = journal.write(entry())
    path = tmp_path / "hosts" / written.host_id / "host.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_host_has_a_live_owner_only_while_its_process_lives(journal: HostJournal, tmp_path: Path) -> None:
    written = journal.write(entry())
    holder = (
        "import sys; from pathlib import Path; from imbue.mngr_vps_docker.journal import HostJournal\n"
        f"with HostJournal(Path({str(tmp_path / 'hosts')!r})).owned({str(written.host_id)!r}):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert journal.has_live_owner(written.host_id)
        process.kill()
        process.wait(10)
    assert not journal.has_live_owner(written.host_id)


def test_forgetting_a_host_leaves_nothing_of_it_nor_of_one_that_was_forgotten_half(
    journal: HostJournal, tmp_path: Path
) -> None:
    written = journal.write(entry())
    ProviderKeys(tmp_path).create_vps_host_key(written.host_id)
    half = tmp_path / "hosts" / f".{HostId.generate()}.0.gone"
    half.mkdir()
    (half / "vps_host_key").touch()
    journal.forget(written.host_id)
    journal.forget(written.host_id)
    assert list((tmp_path / "hosts").iterdir()) == []


def test_nothing_that_comes_too_late_brings_a_forgotten_host_back(journal: HostJournal, tmp_path: Path) -> None:
    host_id = journal.write(entry()).host_id
    journal.forget(host_id)
    assert journal.update(host_id, vps_ip="192.0.2.1") is None
    assert not journal.has_live_owner(host_id)
    with journal.alone(host_id, "power") as is_known:
        assert not is_known
    assert list((tmp_path / "hosts").iterdir()) == []


def test_who_waited_for_a_host_that_is_forgotten_meanwhile_is_told_so(journal: HostJournal) -> None:
    host_id = journal.write(entry()).host_id

    def wait() -> bool:
        with journal.alone(host_id, "power") as is_known:
            return is_known

    with ThreadPoolExecutor() as pool:
        with journal.alone(host_id, "power") as is_known:
            assert is_known
            waiting = pool.submit(wait)
            journal.forget(host_id)
        assert waiting.result(30) is False


def test_a_host_may_be_forgotten_while_others_look_at_it(journal: HostJournal) -> None:
    known = entry()
    ends = threading.Event()

    def look() -> None:
        while not ends.is_set():
            journal.read_all()
            journal.stand_ins()
            journal.update(known.host_id, vps_ip="192.0.2.1")
            journal.has_live_owner(known.host_id)

    with ThreadPoolExecutor() as pool:
        lookers = [pool.submit(look) for _ in range(3)]
        try:
            for _ in range(60):
                journal.write(known)
                journal.forget(known.host_id)
        finally:
            ends.set()
        for looker in lookers:
            looker.result(30)
    assert journal.read(known.host_id) is None


def test_those_who_ask_whether_a_host_has_an_owner_are_none(journal: HostJournal, tmp_path: Path) -> None:
    written = journal.write(entry())
    with journal.owned(written.host_id):
        pass
    with (tmp_path / "hosts" / written.host_id / "owner.lock").open() as asked_by_another:
        fcntl.flock(asked_by_another, fcntl.LOCK_SH)
        assert not journal.has_live_owner(written.host_id)


def test_asking_for_the_owner_of_an_unknown_host_leaves_nothing_behind(journal: HostJournal, tmp_path: Path) -> None:
    assert not journal.has_live_owner(HostId.generate())
    assert list(tmp_path.iterdir()) == []
