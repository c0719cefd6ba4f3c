"""Whatever an operation is at when it is killed, interrupted or fails: nothing is lost, and nothing is leaked.

Each run is a real process with one fault at one point. Afterwards a new one lists, collects garbage and destroys, and
a host that had nothing to do with it is what it was. `make test` runs a share of them that changes daily, and
`make test-faults` all.
"""

import datetime
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from e2e.faults.drive import SEED

from imbue.mngr.primitives import HostId, HostName, HostState
from imbue.mngr_vps_docker.hosts.cloud_resources import uploaded_keys
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.primitives import replace
from support.fault_points import FaultKind
from support.provider import ProviderLab, collect_garbage, states
from support.remote import heed_signals

DRIVER = Path(__file__).with_name("drive.py")
FAULTS = os.environ.get("MNGR_FAULTS")
POINTS_FILE = Path(__file__).with_name("points.json")
POINTS: dict[str, list[str]] = json.loads(POINTS_FILE.read_text())
RUNS = [(operation, point, kind) for kind in FaultKind for operation, points in POINTS.items() for point in points]
# A VPS that is ordered and then unknown is what costs most.
ALWAYS = [("create", "Ordering the VPS: after create_instance", FaultKind.KILL)]
# Of each of the two tests, so that neither is ever without one.
RUNS_PER_DAY = 2
DEADLINE_SECONDS = 240.0
# On the volume, and in the container.
NOTES, LAYER = Path("/mngr/notes.txt"), Path("/root/layer")
PASSING, LASTING = HostName("passing"), HostName("lasting")
# A VPS and a key in the same account that are not mngr's.
FOREIGN = "somebody-elses"
CONTAINERS = "docker ps --all --quiet --filter label=com.imbue.mngr.host-id={}"
# Hosts have no agents here, and gc removes one that has had none for long.
PATIENT = {"min_online_host_age_seconds": 86_400.0}
# All of it takes longer than a host may be idle.
NEVER_IDLE = {"default_idle_timeout": 86_400}
# The operations at whose end a host is there, or is not, and those of a host that is there all the time.
ENDING = (*("create", "create-with-build", "create-from-snapshot", "take-back", "collect-from-elsewhere", "destroy"),)
LASTING_OPERATIONS = (
    *("snapshot", "delete-snapshot", "stop", "start", "start-from-snapshot", "start-without-container"),
)
# Where a create is cut short that another machine is to clean up after.
HALF_WAY = "Waiting for cloud-init and Docker: after command"


def chosen_runs(*, ending: bool) -> list[tuple[str, str, FaultKind]]:
    """The runs of the operations that end a host's life or begin it, or of the others: all of them where
    MNGR_FAULTS=all, else some of today's.
    """
    runs = [run for run in RUNS if (run[0] in ENDING) == ending]
    if FAULTS == "all":
        return runs
    today = random.Random(datetime.date.today().toordinal())
    return [run for run in ALWAYS if run in runs] + today.sample(runs, RUNS_PER_DAY)


# The local cloud shows at once what it was asked to make, so there is no waiting for what it does not show.
PROMPT = Timings(appearing_seconds=0.0)


@pytest.fixture(scope="module")
def labs(vps_image: None, os_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], ProviderLab]]:
    """Accounts of the local cloud, each seeing its own hosts alone, of which nothing is left at the end."""
    made: list[ProviderLab] = []

    def make() -> ProviderLab:
        made.append(ProviderLab(tmp_path_factory.mktemp("lab"), os_id, timings=PROMPT))
        return made[-1]

    yield make
    for lab in made:
        lab.tear_down()
    assert [lab.leftovers() for lab in made] == [[] for _ in made]


@pytest.fixture(scope="module")
def lab(labs: Callable[[], ProviderLab]) -> ProviderLab:
    """An account where hosts come and go; it also has an unrelated host, and a VPS and a key that are not mngr's."""
    lab = labs()
    provider = lab.process(**NEVER_IDLE)
    provider.create_snapshot(provider.create_host(HostName("bystander")), SEED)
    context, cloud = lab.process().context, lab.cloud
    key_id = cloud.upload_ssh_key(FOREIGN, context.keys.vps_client_key().public_key)
    what = (context.config.default_region, context.config.default_plan, context.config.default_os_id)
    cloud.create_instance(FOREIGN, *what, "#cloud-config\n", [key_id], [f"owner={FOREIGN}"])
    return lab


@pytest.fixture(scope="module")
def lasting(labs: Callable[[], ProviderLab]) -> tuple[ProviderLab, HostId]:
    """Where one host is stopped, started and kept as a snapshot again and again."""
    lab = labs()
    host = lab.process(**NEVER_IDLE).create_host(LASTING, tags={"kept": "yes"})
    host.write_file(NOTES, b"kept")
    return lab, host.id


def drive(lab: ProviderLab, operation: str, name: HostName, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            DRIVER,
            operation,
            name,
            lab.folder / machine_of(operation),
            lab.account,
            lab.os_id,
            *options,
        ],
        env=os.environ | {"PYTHONPATH": str(DRIVER.parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        preexec_fn=heed_signals,
    )


def machine_of(operation: str) -> str:
    return "elsewhere" if operation == "collect-from-elsewhere" else "here"


def prepare(lab: ProviderLab, operation: str, host_id: HostId | None = None) -> None:
    """Prepare what an operation works on; ``host_id`` is the lasting host, which runs."""
    match operation:
        case "destroy":
            lab.process().create_host(PASSING)
        case "collect-from-elsewhere":
            # That machine has nothing but the cloud's credentials, each time.
            shutil.rmtree(lab.folder / "elsewhere", ignore_errors=True)
            drive_into(lab, "create", PASSING, HALF_WAY, FaultKind.KILL)
        case "start":
            lab.process().stop_host(host_id, create_snapshot=False)
        case "start-without-container":
            lab.on_vps(host_id, f"docker rm --force $({CONTAINERS.format(host_id)})")
        case "delete-snapshot" | "start-from-snapshot":
            lab.process().create_snapshot(host_id)


def check_points(lab: ProviderLab, operation: str, name: HostName) -> None:
    """The operation meets the points of the list, which MNGR_FAULTS=record brings up to date."""
    done = drive(lab, operation, name)
    assert done.returncode == 0, done.stderr
    met = json.loads(done.stdout)
    if operation == "take-back":
        # Up to there it is a create as any other.
        met = met[met.index("Waiting for the VPS to become active: before wait_for_instance_active") + 1 :]
    met = sorted(met)
    if FAULTS == "record":
        POINTS_FILE.write_text(json.dumps(json.loads(POINTS_FILE.read_text()) | {operation: met}, indent=2) + "\n")
    else:
        assert met == POINTS[operation], operation


def drive_into(lab: ProviderLab, operation: str, name: HostName, point: str, kind: FaultKind) -> None:
    """Run the operation into its fault; it may survive an error, but neither a kill nor an interruption."""
    done = drive(lab, operation, name, "--point", point, "--kind", kind)
    said = f"{done.returncode}: {done.stdout}\n{done.stderr}"
    assert done.returncode in {FaultKind.KILL: (-9,), FaultKind.INTERRUPT: (130,), FaultKind.ERROR: (0, 1)}[kind], said
    assert "Traceback" not in done.stderr, said


def account_now(lab: ProviderLab) -> dict[HostId, HostState | None]:
    """What a new process lists; every VPS and key that the cloud has must be of a host in it."""
    listed = states(lab.process())
    assert set(billed(lab)) | uploaded_keys(lab.process().context).keys() <= listed.keys() | {FOREIGN}
    return listed


def billed(lab: ProviderLab) -> list[str]:
    """Whose each VPS of the account is, by its tag."""
    return sorted(instance.tags.get("mngr-host-id", FOREIGN) for instance in lab.cloud.find_instances({}))


def images_of_snapshots(lab: ProviderLab, host_id: HostId) -> list[str]:
    return lab.on_vps(host_id, "docker image ls --format {{.Repository}}:{{.Tag}} mngr-snapshot").split()


def listed_snapshots(lab: ProviderLab, host_id: HostId) -> set[str]:
    return {snapshot.id for snapshot in lab.process().list_snapshots(host_id)}


def images_in_use(lab: ProviderLab, host_id: HostId) -> set[str]:
    """What the one container of the host was made from; a snapshot that is deleted keeps its image as long."""
    (container,) = lab.on_vps(host_id, CONTAINERS.format(host_id)).split()
    return {lab.on_vps(host_id, f"docker inspect --format {{{{.Config.Image}}}} {container}").strip()}


def check_that_all_of_it_is_gone(lab: ProviderLab, remaining: Collection[HostId]) -> None:
    """Nothing is listed, billed or kept on this machine but what is of the ``remaining`` hosts."""
    assert account_now(lab) == dict.fromkeys(remaining, HostState.RUNNING)
    context = lab.process().context
    ids = sorted(remaining)
    assert billed(lab) == [*ids, FOREIGN]
    assert [key.name for key in lab.cloud.list_ssh_keys()] == [FOREIGN]
    assert sorted(path.name for path in context.keys.hosts_folder.glob("host-*")) == ids
    for known_hosts in (context.vps_known_hosts, context.container_known_hosts):
        # By host id and by address.
        assert len(known_hosts.path.read_text().splitlines()) == 2 * len(ids)


def test_the_points_are_those_at_which_hosts_come_and_go(lab: ProviderLab) -> None:
    others = account_now(lab).keys()
    for operation in ENDING:
        prepare(lab, operation)
        check_points(lab, operation, PASSING)
        for host_id in account_now(lab).keys() - others:
            lab.process().destroy_host(host_id)
        # This machine still remembers what another one removed.
        collect_garbage(lab.process(**PATIENT))
        check_that_all_of_it_is_gone(lab, others)


def test_the_points_are_those_that_a_lasting_host_meets(lasting: tuple[ProviderLab, HostId]) -> None:
    lab, host_id = lasting
    for operation in LASTING_OPERATIONS:
        lab.process().start_host(host_id)
        prepare(lab, operation, host_id)
        check_points(lab, operation, LASTING)
    for snapshot in lab.process().list_snapshots(host_id):
        lab.process().delete_snapshot(host_id, snapshot.id)


@pytest.mark.parametrize(("operation", "point", "kind"), chosen_runs(ending=True))
def test_a_host_is_whole_or_gone(lab: ProviderLab, operation: str, point: str, kind: FaultKind) -> None:
    others = account_now(lab).keys()
    prepare(lab, operation)
    drive_into(lab, operation, PASSING, point, kind)
    listed = account_now(lab)
    collect_garbage(lab.process(**PATIENT))
    kept = account_now(lab)
    for host_id in listed.keys() - others:
        # A finished host is no garbage, and all else is.
        assert (host_id in kept) == (listed[host_id] is HostState.RUNNING), listed[host_id]
    for host_id in kept.keys() - others:
        assert lab.process().start_host(host_id).execute_idempotent_command("true").success
        lab.process().destroy_host(host_id)
    check_that_all_of_it_is_gone(lab, others)


@pytest.mark.parametrize(("operation", "point", "kind"), chosen_runs(ending=False))
def test_a_host_has_all_that_it_had_and_starts(
    lasting: tuple[ProviderLab, HostId], operation: str, point: str, kind: FaultKind
) -> None:
    lab, host_id = lasting
    lab.process().start_host(host_id).write_file(LAYER, b"kept")
    prepare(lab, operation, host_id)
    drive_into(lab, operation, LASTING, point, kind)
    collect_garbage(lab.process(**PATIENT))
    assert account_now(lab).keys() == {host_id}
    provider = lab.process()
    host = provider.start_host(host_id)
    assert host.read_file(NOTES) == b"kept"
    if operation != "start-without-container":
        assert host.read_file(LAYER) == b"kept"
    assert provider.get_host_tags(host_id) == host.get_certified_data().user_tags == {"kept": "yes"}
    assert listed_snapshots(lab, host_id) <= set(images_of_snapshots(lab, host_id))
    # What was made and never listed, or listed no more and never removed, goes with the next change.
    provider = lab.process(timings=replace(PROMPT, unlisted_snapshot_seconds=0.0))
    provider.create_snapshot(host_id)
    in_use = images_in_use(lab, host_id)
    assert listed_snapshots(lab, host_id) - in_use == set(images_of_snapshots(lab, host_id)) - in_use
    for snapshot in provider.list_snapshots(host_id):
        provider.delete_snapshot(host_id, snapshot.id)
    assert set(images_of_snapshots(lab, host_id)) <= in_use
    assert account_now(lab) == {host_id: HostState.RUNNING}
