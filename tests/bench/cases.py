"""The cases: what a user waits for, each next to the least possible (floor) and mngr's own way (peer)."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.distant_vps import BACKEND, DistantVpsClient
from bench.lab import Lab, counted
from bench.many_hosts import discovery
from bench.report import Row, Series
from imbue.mngr.hosts.outer_host import OuterHost
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.builds.context import uploaded_build_context
from imbue.mngr_vps_docker.builds.options import parse_build_args
from imbue.mngr_vps_docker.cloud_init import generate_cloud_init_user_data
from imbue.mngr_vps_docker.hosts.outer_host import SshConnector
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.known_hosts import KnownHostsFile
from imbue.mngr_vps_docker.ssh.process import run_process
from support.local_provider import LocalProvider

DISTANCES_MS: Final = (0, 100)
AGENT: Final = ("--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
HOSTS: Final = 10
UPLOAD_TIMEOUT_SECONDS: Final = 600.0
MIB: Final = 1 << 20


def seconds_of(round_trip_ms: int, round_trips: float) -> float:
    """What so many round trips take."""
    return round_trips * round_trip_ms / 1000


def command_line(lab: Lab) -> Iterator[Row]:
    """`mngr exec` and `mngr list`, the second time on."""
    mngr = lab.mngr
    lab.use("local")
    mngr("create", "a0", "--type", "command", "--no-connect", "--", "sleep", "100000")
    mngr("exec", "a0", "true")
    exec_floor = lab.measured(lambda: mngr("exec", "a0", "true"))
    list_floor = lab.measured(lambda: mngr("list"))
    mngr("destroy", "a0", "--force")
    lab.use(BACKEND)
    mngr("create", f"a1@h1.{BACKEND_PROVIDER}", *AGENT)
    for distance in DISTANCES_MS:
        lab.go_away(distance)
        mngr("exec", "a1", "true")
        ours, notes = counted(lab, lambda: lab.measured(lambda: mngr("exec", "a1", "true")))
        limit = exec_floor.median + 0.15 + seconds_of(distance, 3)
        yield Row("mngr exec a true", distance, ours, exec_floor, limit_seconds=limit, notes=notes)
        yield listing_row(lab, distance, 1, list_floor)
    lab.go_away(0)
    for number in range(2, HOSTS + 1):
        mngr("create", f"a{number}@h{number}.{BACKEND_PROVIDER}", *AGENT)
    for distance in DISTANCES_MS:
        lab.go_away(distance)
        mngr("list")
        yield listing_row(lab, distance, HOSTS, list_floor)


BACKEND_PROVIDER: Final = "local-vps"


def listing_row(lab: Lab, distance: int, hosts: int, floor: Series) -> Row:
    ours, notes = counted(lab, lambda: lab.measured(lambda: lab.mngr("list")))
    limit = floor.median + 0.25 if distance == 0 else None
    return Row(f"mngr list, {hosts} hosts", distance, ours, floor, limit_seconds=limit, notes=notes)


def creation(lab: Lab) -> Iterator[Row]:
    """From the instance being active and its cloud-init done to a usable host, the image being there."""
    for distance in DISTANCES_MS:
        lab.go_away(distance)
        ours, floor, logins = [], [], []
        for number in range(lab.rounds):
            provider = lab.provider()
            host = provider.create_host(HostName(f"c{distance}-{number}"))
            ours.append(time.monotonic() - active_at(provider))
            (instance,) = (
                found for found in lab.mngr.cloud.find_instances({"mngr-host-id": host.id}) if found.address
            )
            logins.append(lab.logins_to(str(instance.id)))
            destroy(lab, provider, host.id)
            floor.append(hand_written_create(lab, f"f{distance}-{number}"))
        limit = Series(tuple(floor)).median + 2.0
        notes = f"{logins[-1][0]} login to the VPS, {logins[-1][1]} to the container"
        yield Row(
            "create, once cloud-init is done",
            distance,
            Series(tuple(ours)),
            Series(tuple(floor)),
            limit_seconds=limit,
            notes=notes,
        )


def active_at(provider: LocalProvider) -> float:
    assert isinstance(provider.vps_client, DistantVpsClient)
    return provider.vps_client.became_active[-1]


def destroy(lab: Lab, provider: LocalProvider, host_id: HostId) -> None:
    provider.destroy_host(host_id)
    lab.go_away(lab.round_trip_ms)


def plain_ssh(connection: SshConnection, command: str) -> list[str]:
    """A command over the open login, like ours: a floor with a login of its own would be too high."""
    target, socket = connection.target, connection._master.control_path
    return ["ssh", "-S", str(socket), "-F", "none", "-p", str(target.port), f"{target.user}@{target.host}", command]


# What a person would write to get a container with an sshd on a new VPS: without records, own keys or repairs.
BY_HAND: Final = """\
docker run -d --name state -v state:/state --entrypoint sh {image} -c 'sleep 100000' >/dev/null
docker run -d --name host -v host:/mngr -p 2222:22 --entrypoint sh {image} -c 'sleep 100000' >/dev/null
docker exec -i host sh -c 'mkdir -p /run/sshd /root/.ssh; cat >/root/.ssh/authorized_keys; ssh-keygen -A; exec /usr/sbin/sshd'
"""  # noqa: E501


def hand_written_create(lab: Lab, name: str) -> float:
    """Seconds for the same by two plain ssh commands, on another VPS."""
    provider = lab.provider("hand")
    context, client = provider.context, provider.vps_client
    key, host_key = context.keys.vps_client_key(), context.keys.create_vps_host_key(HostId.generate())
    user_data = generate_cloud_init_user_data(host_key.private_key_path.read_text(), host_key.public_key)
    key_id = client.upload_ssh_key(name, key.public_key)
    config = provider.config
    instance_id = client.create_instance(
        name, config.default_region, config.default_plan, config.default_os_id, user_data, [key_id], []
    )
    address = client.wait_for_instance_active(instance_id)
    options = ("-F", "none", "-i", str(key.private_key_path), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR")
    ssh = ("ssh", *options, "-o", "UserKnownHostsFile=/dev/null")
    public_key = f"{key.public_key}\n".encode()
    began = time.monotonic()
    script = BY_HAND.format(image=config.default_image)
    for port, command, data in (("22", script, public_key), ("2222", "true", b"")):
        subprocess.run([*ssh, "-p", port, f"root@{address}", command], input=data, check=True, capture_output=True)
    seconds = time.monotonic() - began
    client.destroy_instance(instance_id)
    return seconds


def power(lab: Lab) -> Iterator[Row]:
    """Stop, start and snapshot: one remote command each, next to Docker's own time."""
    lab.go_away(0)
    provider = lab.provider()
    host_id = provider.create_host(HostName("power")).id
    try:
        for distance in DISTANCES_MS:
            lab.go_away(distance)
            yield from power_rows(lab, distance, provider, host_id)
    finally:
        destroy(lab, provider, host_id)


def power_rows(lab: Lab, distance: int, provider: LocalProvider, host_id: HostId) -> Iterator[Row]:
    connection = vps_of(lab, provider, host_id)
    container = f"{lab.account}-power"

    def by_docker(command: str) -> None:
        connection.run(command, purpose="floor", timeout_seconds=60).checked()

    def seen() -> None:
        provider.discover_hosts(provider.mngr_ctx.concurrency_group)

    seen()

    def started() -> None:
        provider.start_host(host_id)
        seen()

    def stopped() -> None:
        provider.start_host(host_id)
        provider.stop_host(host_id, create_snapshot=False)
        seen()

    def stop() -> None:
        provider.stop_host(host_id, create_snapshot=False)

    floor = lab.measured(lambda: by_docker(f"docker stop {container}"), started)
    ours, notes = counted_api(lab, provider, stop, started)
    yield Row("stop", distance, ours, floor, notes=notes)
    floor = lab.measured(lambda: by_docker(f"docker start {container}"), stopped)
    ours, notes = counted_api(lab, provider, lambda: provider.start_host(host_id), stopped)
    yield Row("start", distance, ours, floor, notes=notes)
    started()
    floor = lab.measured(lambda: by_docker(f"docker commit {container} floor && docker image rm floor"))
    ours, notes = counted_api(lab, provider, lambda: provider.create_snapshot(host_id), seen)
    yield Row("snapshot", distance, ours, floor, notes=notes)


def vps_of(lab: Lab, provider: LocalProvider, host_id: HostId) -> SshConnection:
    """The connection to the VPS of a host, at the present distance, open."""
    lab.go_away(lab.round_trip_ms)
    (address,) = (str(found.address) for found in provider.vps_client.find_instances({"mngr-host-id": host_id}) or ())
    connection = provider.context.vps(address, host_id)
    connection.run("true", purpose="warm up", timeout_seconds=60).checked()
    return connection


def counted_api(
    lab: Lab, provider: LocalProvider, act: Callable[[], object], before: Callable[[], object]
) -> tuple[Series, str]:
    """Measure an operation of the provider, and say how many remote commands each takes."""
    log = provider.context.command_log
    assert log is not None
    counts = []

    def counting() -> None:
        counts.append(-len(log.path.read_text().splitlines()))
        act()
        counts[-1] += len(log.path.read_text().splitlines())

    return lab.measured(counting, before), f"{max(counts)} commands"


def files(lab: Lab) -> Iterator[Row]:
    """A build context, and single files, to a VPS."""
    lab.go_away(0)
    provider = lab.provider()
    host_id = provider.create_host(HostName("files")).id
    try:
        for distance in DISTANCES_MS:
            lab.go_away(distance)
            connection = vps_of(lab, provider, host_id)
            yield from uploads(lab, distance, connection)
            yield from single_file(lab, distance, connection)
    finally:
        destroy(lab, provider, host_id)


def uploads(lab: Lab, distance: int, connection: SshConnection) -> Iterator[Row]:
    many, large = lab.folder / "many", lab.folder / "large"
    if not many.exists():
        make_context(many, count=10_000, size_bytes=3_400)
        make_context(large, count=1, size_bytes=200 * MIB)

    def upload(folder: Path) -> None:
        build = parse_build_args([str(folder)], default_region="r", default_plan="p", default_os_id=1)
        with uploaded_build_context(connection, build, timeout_seconds=UPLOAD_TIMEOUT_SECONDS):
            pass

    def tar_pipe(folder: Path) -> None:
        pipe_tar(folder, connection, "mkdir /tmp/floor && tar -x -C /tmp/floor && rm -rf /tmp/floor")

    floor, ours = lab.side_by_side(lambda: tar_pipe(many), lambda: upload(many))
    yield Row("upload 10,000 files, 34 MB", distance, ours, floor, limit_seconds=1.2 * floor.median)
    ours = lab.measured(lambda: upload(many))
    yield Row("the same, unchanged", distance, ours, floor, limit_seconds=2.0)
    ours = lab.measured(lambda: upload(many), lambda: (many / "0" / "0").write_bytes(os.urandom(3_400)))
    yield Row("the same, one file changed", distance, ours, floor, limit_seconds=2.0)
    floor, ours = lab.side_by_side(lambda: tar_pipe(large), lambda: upload(large))
    yield Row("upload 200 MB, incompressible", distance, ours, floor, limit_seconds=4.0)


def pipe_tar(folder: Path, connection: SshConnection, command: str) -> None:
    """``tar`` piped over one ssh to a command."""
    with subprocess.Popen(["tar", "-c", "-C", folder, "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(plain_ssh(connection, command), stdin=tar.stdout, check=True, capture_output=True)


def make_context(folder: Path, *, count: int, size_bytes: int) -> None:
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    for number in range(count):
        (folder / str(number % 100)).mkdir(exist_ok=True)
        (folder / str(number % 100) / str(number)).write_bytes(os.urandom(size_bytes))


def single_file(lab: Lab, distance: int, connection: SshConnection) -> Iterator[Row]:
    content, path = os.urandom(5 * MIB), "/tmp/bench-file"

    def cat(script: str, stdin: bytes = b"") -> None:
        subprocess.run(plain_ssh(connection, script), input=stdin, check=True, capture_output=True)

    target = connection.target
    # The peer knows machines by their addresses.
    assert target.host_key_alias is not None
    KnownHostsFile(target.known_hosts_file).adopt(target.host, target.host_key_alias)
    connector = SshConnector(target.host, lambda: target, run_process)
    peer = OuterHost(id=HostId.generate(), connector=connector, mngr_ctx=lab.provider().mngr_ctx)
    floor, peers, ours = lab.side_by_side(
        lambda: cat(f"cat >{path}", content),
        lambda: peer.write_file(Path(path), content),
        lambda: connection.write_file(path, content),
    )
    yield Row("write a 5 MB file", distance, ours, floor, peers, limit_seconds=1.5 * floor.median)
    floor, peers, ours = lab.side_by_side(
        lambda: cat(f"cat {path}"),
        lambda: peer.read_file(Path(path)),
        lambda: connection.read_file(path),
    )
    yield Row("read a 5 MB file", distance, ours, floor, peers, limit_seconds=1.5 * floor.median)
    floor, peers, ours = lab.side_by_side(
        lambda: cat("true"),
        lambda: peer.execute_idempotent_command("true"),
        lambda: connection.run("true", purpose="bench", timeout_seconds=60).checked(),
    )
    yield Row("one command", distance, ours, floor, peers)
    peer.disconnect()


def imports(lab: Lab) -> Iterator[Row]:
    """What importing the package adds to what mngr imports anyway."""
    # mngr is to find no plugins: one that uses the package is imported with it.
    code = "import importlib.metadata, time; importlib.metadata.distributions = lambda **_: ()\n"
    code += "import imbue.mngr.main, imbue.mngr.hosts.host, imbue.mngr.providers.base_provider\n"
    code += "began = time.perf_counter(); import imbue.mngr_vps_docker.instance\n"
    code += "print(time.perf_counter() - began)"

    def once() -> float:
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
        return float(done.stdout)

    once()
    series = Series(tuple(once() for _ in range(lab.rounds)))
    yield Row("import …instance", 0, series, limit_seconds=0.03)


CASES: Final[dict[str, Callable[[Lab], Iterator[Row]]]] = {
    "import": imports,
    "files": files,
    "discovery": discovery,
    "power": power,
    "create": creation,
    "cli": command_line,
}
