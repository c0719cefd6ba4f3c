"""Records on a real Docker volume over a real ssh, when the disk is full and when writers are killed."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.images import image_of_base
from imbue.mngr_vps_docker.docker_over_ssh import ContainerSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord, VpsDockerHostStore
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.state.record import encode_agent_data, encode_record
from support.builders import any_records, assert_same, record_of
from support.loopback_sshd import LoopbackSshd
from support.remote import wait_for

IMAGE = image_of_base("bookworm")
VOLUME_BYTES = 256 * 1024

# Writes ever new versions of one record, each larger than what a pipe holds, until it is killed.
WRITER = """
import sys
from pathlib import Path
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr.primitives import HostId

port, identity, known_hosts, user, volume, host_id = sys.argv[1:]
target = SshTarget("127.0.0.1", Path(identity), Path(known_hosts), "loopback", user=user, port=int(port))
store = VpsDockerHostStore(SshConnection(target), volume)
number = 0
while True:
    number += 1
    log = f"{number} " * 50_000
    def change(record):
        data = record.certified_host_data.model_copy(update={"build_log": log})
        return record.model_copy(update={"certified_host_data": data})
    store.update_host_record(HostId(host_id), change)
    print(number, flush=True)
"""


@pytest.fixture(scope="module")
def sshd(vps_image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSshd]:
    with LoopbackSshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def connection(sshd: LoopbackSshd) -> Iterator[SshConnection]:
    connection = SshConnection(sshd.target())
    yield connection
    connection.close()


@pytest.fixture
def volume() -> Iterator[str]:
    name = f"mngr-e2e-{secrets.token_hex(4)}"
    yield name
    run_docker("volume", "rm", "--force", name)


def folder_of(volume: str) -> Path:
    return Path(run_docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume).strip()) / "host_state"


def with_log(record: VpsDockerHostRecord, build_log: str) -> VpsDockerHostRecord:
    data = record.certified_host_data.model_copy(update={"build_log": build_log})
    return record.model_copy(update={"certified_host_data": data})


def test_a_full_disk_is_named_and_leaves_the_old_record(connection: SshConnection, volume: str) -> None:
    options = ("--opt=type=tmpfs", "--opt=device=tmpfs", f"--opt=o=size={VOLUME_BYTES}")
    run_docker("volume", "create", *options, volume)
    docker = DockerOverSsh(connection)
    # Docker mounts it while a container uses it.
    keeper = docker.run_container(
        ContainerSpec(name=volume, image=IMAGE, entrypoint="sleep", command=("600",), volumes={volume: "/state"})
    )
    try:
        store = VpsDockerHostStore(connection, volume)
        record = record_of(build_log="small")
        store.write_host_record(record)
        for write in (store.write_host_record, lambda new: store.update_host_record(new.host_id, lambda _old: new)):
            with pytest.raises(HostRecordError, match=r"disk is full, and the old record is kept.*No space left"):
                write(with_log(record, "x" * 2 * VOLUME_BYTES))
        with pytest.raises(HostRecordError, match="disk is full"):
            store.persist_agent_data(record.host_id, {"id": f"agent-{'0' * 32}", "much": "x" * 2 * VOLUME_BYTES})
        assert VpsDockerHostStore(connection, volume).list_all_host_records_with_agents() == ([record], {})
        # What did not fit is not left behind, so there is room again.
        store.write_host_record(with_log(record, "y" * (VOLUME_BYTES // 4)))
        assert docker.exec(keeper, "ls -A /state/host_state", purpose="look", timeout_seconds=20).text.split() == [
            ".lock",
            f"{record.host_id}.json",
        ]
    finally:
        docker.remove_container(keeper)


def test_a_killed_writer_leaves_a_whole_record_and_no_lock(
    connection: SshConnection, sshd: LoopbackSshd, volume: str, tmp_path: Path
) -> None:
    run_docker("volume", "create", volume)
    store = VpsDockerHostStore(connection, volume)
    record = record_of(build_log="0 " * 50_000)
    store.write_host_record(record)
    target = sshd.target()
    arguments = (target.port, target.identity_file, target.known_hosts_file, target.user, volume, record.host_id)
    for round_number in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, *map(str, arguments)], stdout=subprocess.PIPE, env=os.environ
        ) as writer:
            assert writer.stdout is not None and writer.stdout.readline()
            # Anywhere in the next write.
            time.sleep(0.01 * round_number)
            writer.kill()
        read = store.read_host_record(record.host_id, use_cache=False)
        assert read is not None
        words = (read.certified_host_data.build_log or "").split()
        assert len(words) == 50_000 and len(set(words)) == 1
        store.write_host_record(record)
    state = folder_of(volume)
    wait_for(lambda: sorted(path.name for path in state.iterdir()) == [".lock", f"{record.host_id}.json"])


def test_records_and_agents_of_any_content_are_read_back_exactly(connection: SshConnection, volume: str) -> None:
    run_docker("volume", "create", volume)
    records, agents = any_records(300)
    state = folder_of(volume)
    for record in records:
        (state / record.host_id).mkdir(parents=True)
        (state / f"{record.host_id}.json").write_bytes(encode_record(record))
        for agent in agents[record.host_id]:
            (state / record.host_id / f"{agent['id']}.json").write_bytes(encode_agent_data(agent))
    assert_same(VpsDockerHostStore(connection, volume).list_all_host_records_with_agents(), (records, agents))
