import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.docker.errors import DaemonNotRunningError
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord, VpsDockerHostStore
from imbue.mngr_vps_docker.state import volume_scripts
from support.builders import NASTY, PIECES, any_records, assert_same, record_of
from support.local_machine import LocalMachine
from support.remote import wait_for

# Each write takes some ten milliseconds. The larger number, with four agents each, is nearly all that is ever read.
_WRITTEN_RECORDS = 300 if os.environ.get("MNGR_FAULTS") == "all" else 15


@pytest.fixture
def volume(machine: LocalMachine) -> Path:
    return machine.volume("state")


@pytest.fixture
def store(machine: LocalMachine, volume: Path) -> VpsDockerHostStore:
    return VpsDockerHostStore(machine, "state")


def _other(store: VpsDockerHostStore) -> VpsDockerHostStore:
    return VpsDockerHostStore(store.connection, store.volume_name)


def _with_tag(record: VpsDockerHostRecord, key: str) -> VpsDockerHostRecord:
    data = record.certified_host_data
    changed = data.model_copy(update={"user_tags": {**data.user_tags, key: NASTY}})
    return record.model_copy(update={"certified_host_data": changed})


def test_a_record_is_written_and_read_back_by_another(store: VpsDockerHostStore, volume: Path) -> None:
    record = record_of(user_tags={"k": NASTY})
    store.write_host_record(record)
    assert _other(store).read_host_record(record.host_id) == record
    (only,) = [path for path in (volume / "host_state").iterdir() if path.name != ".lock"]
    assert only.name == f"{record.host_id}.json"
    assert only.stat().st_mode & 0o777 == 0o600


def test_each_operation_is_one_round_trip(store: VpsDockerHostStore, machine: LocalMachine) -> None:
    record = record_of()
    host_id, agent = record.host_id, {"id": AgentId()}
    for operation in (
        lambda: store.write_host_record(record),
        lambda: store.read_host_record(host_id, use_cache=False),
        lambda: store.update_host_record(host_id, lambda old: _with_tag(old, "k"), last_seen=record),
        lambda: store.persist_agent_data(host_id, agent),
        lambda: store.list_persisted_agent_data_for_host(host_id),
        lambda: store.list_all_host_records_with_agents(),
        lambda: store.remove_persisted_agent_data(host_id, agent["id"]),
        lambda: store.delete_host_record(host_id),
    ):
        machine.commands.clear()
        operation()
        assert len(machine.commands) == 1
    machine.commands.clear()
    store.write_host_record(record)
    assert store.read_host_record(host_id) == record
    assert len(machine.commands) == 1


def test_an_unknown_host_has_no_record_and_no_agents(store: VpsDockerHostStore) -> None:
    host_id = HostId()
    assert store.read_host_record(host_id) is None
    assert store.list_all_host_records_with_agents() == ([], {})
    assert store.list_persisted_agent_data_for_host(host_id) == []
    store.remove_persisted_agent_data(host_id, AgentId())
    store.delete_host_record(host_id)
    store.persist_agent_data(host_id, {"id": AgentId()})
    assert store.list_all_host_records_with_agents() == ([], {})
    with pytest.raises(HostNotFoundError):
        store.update_host_record(host_id, lambda record: record)


def test_agents_are_kept_replaced_and_forgotten(store: VpsDockerHostStore) -> None:
    record = record_of()
    store.write_host_record(record)
    one, two = {"id": AgentId(), "x": NASTY}, {"id": AgentId(), "deep": {"a": [1, None]}}
    for agent in (one, two, one | {"x": 1}):
        store.persist_agent_data(record.host_id, agent)
    kept = store.list_persisted_agent_data_for_host(record.host_id)
    assert {agent["id"]: agent for agent in kept} == {one["id"]: one | {"x": 1}, two["id"]: two}
    assert store.list_all_host_records_with_agents() == ([record], {record.host_id: kept})
    store.remove_persisted_agent_data(record.host_id, AgentId(str(one["id"])))
    assert store.list_persisted_agent_data_for_host(record.host_id) == [two]
    store.delete_host_record(record.host_id)
    assert store.list_all_host_records_with_agents() == ([], {})


@pytest.mark.parametrize("agent", [{}, {"id": "../../../etc/x"}, {"id": None}])
def test_agent_data_without_an_id_is_not_kept(store: VpsDockerHostStore, agent: dict[str, Any]) -> None:
    record = record_of()
    store.write_host_record(record)
    store.persist_agent_data(record.host_id, agent)
    assert store.list_persisted_agent_data_for_host(record.host_id) == []


def test_ids_that_mngr_accepts_but_no_path_should_hold_are_refused(store: VpsDockerHostStore) -> None:
    with pytest.raises(HostRecordError, match="not an id that a record can have"):
        store.read_host_record(HostId(f"host- {'0' * 29}\n "))


def test_a_bad_file_costs_that_one_record_and_is_named(store: VpsDockerHostStore, volume: Path) -> None:
    good, torn, foreign = record_of(), record_of(), record_of()
    for record in (good, torn, foreign):
        store.write_host_record(record)
    state = volume / "host_state"
    (state / f"{torn.host_id}.json").write_text('{"certified_host')
    (state / f"{foreign.host_id}.json").write_text((state / f"{good.host_id}.json").read_text())
    (state / "notes.json").write_text("{}")
    (state / "a folder.json").mkdir()
    (state / ".new.XXXX").write_text("{")
    (state / str(good.host_id)).mkdir()
    (state / str(good.host_id) / f"{AgentId()}.json").write_text("[1")
    link = HostId()
    (state / f"{link}.json").symlink_to("/etc/passwd")
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    assert store.list_all_host_records_with_agents() == ([good], {})
    logger.remove(sink)
    for name in (torn.host_id, foreign.host_id, link, "notes", "a folder"):
        assert sum(f"{name}.json on the VPS" in line for line in said) == (name != "a folder"), name
    for host_id in (torn.host_id, foreign.host_id, link):
        with pytest.raises(HostRecordError, match=host_id):
            store.read_host_record(host_id, use_cache=False)


def test_an_absent_volume_is_said(machine: LocalMachine) -> None:
    store = VpsDockerHostStore(machine, "nowhere")
    for operation in (
        lambda: store.list_all_host_records(),
        lambda: store.read_host_record(HostId()),
        lambda: store.write_host_record(record_of()),
        lambda: store.delete_host_record(HostId()),
    ):
        with pytest.raises(HostRecordError, match="get nowhere: no such volume"):
            operation()


def test_a_daemon_that_is_down_is_not_an_absent_volume(store: VpsDockerHostStore, machine: LocalMachine) -> None:
    (machine.volumes / ".daemon-down").touch()
    with pytest.raises(DaemonNotRunningError):
        store.list_all_host_records()
    with pytest.raises(DaemonNotRunningError):
        store.write_host_record(record_of())


def test_data_that_did_not_all_arrive_is_not_written(
    store: VpsDockerHostStore, machine: LocalMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of()
    store.write_host_record(record)
    run = machine.run

    def cut_off(command: str, *, stdin: bytes | None = None, **rest: Any) -> Any:
        return run(command, stdin=(stdin or b"")[:-1], **rest)

    monkeypatch.setattr(machine, "run", cut_off)
    with pytest.raises(HostRecordError, match="bytes arrived"):
        store.write_host_record(_with_tag(record, "k"))
    monkeypatch.undo()
    assert _other(store).read_host_record(record.host_id) == record


def test_the_last_seen_record_replaces_an_unreadable_one(store: VpsDockerHostStore, volume: Path) -> None:
    record = record_of()
    path = volume / "host_state" / f"{record.host_id}.json"
    store.write_host_record(record)
    for content in (b"torn", b"torn again"):
        path.write_bytes(content)
        with pytest.raises(HostRecordError, match="cannot be read: not JSON"):
            _other(store).update_host_record(record.host_id, lambda old: old)
        _other(store).update_host_record(record.host_id, lambda old: _with_tag(old, "first"), last_seen=record)
        # Whoever saw it torn as well finds that it is not any more.
        changed = _other(store).update_host_record(
            record.host_id, lambda old: _with_tag(old, "second"), last_seen=record
        )
        assert set(changed.certified_host_data.user_tags) == {"first", "second"}
        assert _other(store).list_all_host_records() == [changed]
        assert path.with_name(f"{path.name}.unreadable").read_bytes() == content
    store.delete_host_record(record.host_id)
    assert [found.name for found in path.parent.iterdir()] == [".lock"]


def test_a_record_of_a_newer_version_that_cannot_be_read_is_left_alone(
    store: VpsDockerHostStore, volume: Path
) -> None:
    record = record_of()
    store.write_host_record(record)
    path = volume / "host_state" / f"{record.host_id}.json"
    newer = json.loads(path.read_text()) | {"schema_version": 99, "vps_ip": {"v4": "192.0.2.1"}}
    path.write_text(json.dumps(newer))
    with pytest.raises(HostRecordError, match=r"newer version.*99"):
        _other(store).update_host_record(record.host_id, lambda old: _with_tag(old, "k"), last_seen=record)
    assert json.loads(path.read_text()) == newer
    assert _other(store).list_all_host_records() == []
    # One that can be read is changed, and stays what it is.
    path.write_text(json.dumps(newer | {"vps_ip": "192.0.2.1", "more": "of it"}))
    _other(store).update_host_record(record.host_id, lambda old: _with_tag(old, "k"))
    changed = json.loads(path.read_text())
    assert (changed["schema_version"], changed["more"]) == (99, "of it")


def test_an_update_loses_no_others_change(store: VpsDockerHostStore) -> None:
    record = record_of()
    store.write_host_record(record)
    _other(store).update_host_record(record.host_id, lambda old: _with_tag(old, "theirs"))
    updated = store.update_host_record(record.host_id, lambda old: _with_tag(old, "ours"))
    assert set(updated.certified_host_data.user_tags) == {"theirs", "ours"}
    assert _other(store).read_host_record(record.host_id) == updated


def test_a_command_replaces_a_record_only_while_it_is_what_was_seen(store: VpsDockerHostStore) -> None:
    seen = record_of()
    store.write_host_record(seen)
    changed, another = _with_tag(seen, "a"), _with_tag(seen, "b")

    def replace(seen: VpsDockerHostRecord, changed: VpsDockerHostRecord) -> bool:
        return store.connection.call(store.replace_record_command(seen, changed))

    assert replace(seen, seen)
    assert replace(seen, changed)
    assert not replace(seen, another)
    assert not replace(seen, seen)
    assert _other(store).read_host_record(seen.host_id) == changed
    store.delete_host_record(seen.host_id)
    assert not replace(changed, another)
    assert store.read_host_record(seen.host_id) is None


def test_many_updates_at_once_all_have_their_effect(store: VpsDockerHostStore) -> None:
    record = record_of()
    store.write_host_record(record)

    def work(worker: int) -> None:
        mine = _other(store)
        for number in range(5):
            mine.update_host_record(record.host_id, lambda old: _with_tag(old, f"{worker}-{number}"))  # noqa: B023

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    final = store.read_host_record(record.host_id, use_cache=False)
    assert final is not None and len(final.certified_host_data.user_tags) == 20


def test_an_update_after_a_deletion_does_not_bring_the_record_back(store: VpsDockerHostStore) -> None:
    record = record_of()
    store.write_host_record(record)
    _other(store).delete_host_record(record.host_id)
    with pytest.raises(HostNotFoundError):
        store.update_host_record(record.host_id, lambda old: _with_tag(old, "k"))


def test_a_lock_ends_with_its_holder(store: VpsDockerHostStore, volume: Path) -> None:
    record = record_of()
    store.write_host_record(record)
    hold = "import fcntl, sys, time; fcntl.flock(open(sys.argv[1]), 2); print(flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", hold, str(volume / "host_state" / ".lock")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        waiting = threading.Thread(target=store.write_host_record, args=(_with_tag(record, "k"),))
        waiting.start()
        holder.kill()
    waiting.join(20)
    read = _other(store).read_host_record(record.host_id)
    assert read is not None and "k" in read.certified_host_data.user_tags


def test_a_lock_that_is_held_for_ever_is_waited_for_no_longer_than_said(
    store: VpsDockerHostStore, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_scripts, "LOCK_TIMEOUT_SECONDS", 1)
    record = record_of()
    store.write_host_record(record)
    with (volume / "host_state" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HostRecordError, match="the lock is busy"):
            store.write_host_record(_with_tag(record, "k"))
    assert _other(store).list_all_host_records() == [record]


def test_a_writer_killed_on_the_vps_leaves_the_old_record_and_no_lock(
    store: VpsDockerHostStore, machine: LocalMachine, volume: Path
) -> None:
    record = record_of()
    store.write_host_record(record)
    writer = subprocess.Popen(
        ["sh", "-c", machine.commands[-1]],
        stdin=subprocess.PIPE,
        env=machine.environment,
        start_new_session=True,
    )
    with writer:
        assert writer.stdin is not None
        writer.stdin.write(b'{"half of it')
        writer.stdin.flush()
        wait_for(lambda: any(path.stat().st_size for path in (volume / "host_state").glob(".new.*")))
        os.killpg(writer.pid, signal.SIGKILL)
    (litter,) = (volume / "host_state").glob(".new.*")
    assert _other(store).list_all_host_records() == [record]
    store.write_host_record(_with_tag(record, "k"))
    assert litter.exists(), "what might be another's that is still writing is left alone"
    os.utime(litter, (0, 0))
    store.write_host_record(record)
    assert sorted(path.name for path in (volume / "host_state").iterdir()) == [".lock", f"{record.host_id}.json"]


@pytest.mark.parametrize("size_bytes", [0, 1, 1_000_000])
def test_records_and_agents_of_any_size(store: VpsDockerHostStore, size_bytes: int) -> None:
    fuzz = random.Random(size_bytes)
    text = "".join(fuzz.choices(PIECES, k=1000)) * (size_bytes // 2500) + "x"
    assert len(text.encode()) >= size_bytes
    record, agent = record_of(build_log=text), {"id": AgentId.generate(), text[:9]: text}
    store.write_host_record(record)
    store.persist_agent_data(record.host_id, agent)
    assert _other(store).list_all_host_records_with_agents() == ([record], {record.host_id: [agent]})
    assert _other(store).read_host_record(record.host_id) == record
    changed = _with_tag(record, text[:9])
    assert store.connection.call(store.replace_record_command(record, changed))
    assert _other(store).read_host_record(record.host_id) == changed


def test_records_of_any_content_are_read_back_exactly(store: VpsDockerHostStore, volume: Path) -> None:
    records, agents = any_records(_WRITTEN_RECORDS)

    def write(record: VpsDockerHostRecord) -> None:
        mine = _other(store)
        mine.write_host_record(record)
        for agent in agents[record.host_id]:
            mine.persist_agent_data(record.host_id, agent)

    with ThreadPoolExecutor(4) as pool:
        assert all(done is None for done in pool.map(write, records))
    assert_same(_other(store).list_all_host_records_with_agents(), (records, agents))


def test_one_corrupt_record_among_a_thousand_loses_exactly_one(store: VpsDockerHostStore, volume: Path) -> None:
    record = record_of()
    store.write_host_record(record)
    template = (volume / "host_state" / f"{record.host_id}.json").read_text()
    ids = {HostId() for _ in range(999)}
    for host_id in ids:
        (volume / "host_state" / f"{host_id}.json").write_text(template.replace(record.host_id, host_id))
    bad = next(iter(ids))
    (volume / "host_state" / f"{bad}.json").write_bytes(b"\0\xff")
    assert {found.host_id for found in store.list_all_host_records()} == (ids | {record.host_id}) - {bad}


def test_a_record_of_version_0_is_read_and_upgraded_by_the_first_change(
    store: VpsDockerHostStore, volume: Path
) -> None:
    record = record_of()
    store.write_host_record(record)
    path = volume / "host_state" / f"{record.host_id}.json"
    old = json.loads(path.read_text())
    del old["schema_version"]
    path.write_text(json.dumps(old))
    other = _other(store)
    assert [found.host_id for found in other.list_all_host_records()] == [record.host_id]
    other.update_host_record(record.host_id, lambda found: _with_tag(found, "k"))
    assert json.loads(path.read_text())["schema_version"] == 1


def test_records_are_plain_json_that_other_versions_read(store: VpsDockerHostStore, volume: Path) -> None:
    record = record_of()
    store.write_host_record(record)
    data = json.loads((volume / "host_state" / f"{record.host_id}.json").read_text())
    assert data["certified_host_data"]["host_id"] == record.host_id
