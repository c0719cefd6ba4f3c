"""What an agent in its container cannot do to its VPS, and what its snapshots do not give away."""

import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr.api.connect import build_ssh_base_args
from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import HostName, HostState, SnapshotName
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.images import require_image
from imbue.mngr_vps_docker.errors import RemoteCommandError, VpsAuthenticationError
from imbue.mngr_vps_docker.lifecycle.vps_identity import activate_host_key
from imbue.mngr_vps_docker.state.keys import KeyPair, load_or_create_key_pair
from support.provider import ProviderLab, states
from support.remote import wait_for

pytestmark = pytest.mark.core

SECRET = "canary-5f1e9a"
KEPT = "what-a-snapshot-is-for-2b7c"


@pytest.fixture(scope="module")
def host(lab: ProviderLab) -> Host:
    """A host on a VPS with one core and 1 GiB."""
    return lab.process().create_host(HostName("h1"), build_args=["--vps-plan=1c-1gb"])


def test_a_container_gets_no_new_privileges_and_bounded_logs_and_processes(lab: ProviderLab, host: Host) -> None:
    container = json.loads(lab.on_vps(host.id, "docker inspect $(docker ps -q --filter label=com.imbue.mngr.host-id)"))
    settings = container[0]["HostConfig"]
    assert settings["SecurityOpt"] == ["no-new-privileges"]
    assert (settings["LogConfig"]["Type"], settings["PidsLimit"], settings["OomScoreAdj"]) == ("local", 4096, 500)
    assert (settings["Privileged"], settings["PidMode"]) == (False, "")
    # What Docker 20.10 calls default, 26 calls by its name.
    assert settings["NetworkMode"] in ("default", "bridge")
    # The file of control groups v2, or of v1.
    limit = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null"
    said = host.execute_idempotent_command(f"grep NoNewPrivs /proc/self/status; {limit}")
    assert said.stdout.split() == ["NoNewPrivs:", "1", "4096"]


def test_a_container_has_neither_raw_sockets_nor_device_files(host: Host) -> None:
    said = host.execute_idempotent_command("grep -E 'Cap(Eff|Bnd)' /proc/self/status; mknod /dev/null2 c 1 3")
    effective, bounding = (int(said.stdout.split()[word], 16) for word in (1, 3))
    # CAP_NET_RAW and CAP_MKNOD, by their numbers in linux/capability.h.
    assert ((effective | bounding) & (1 << 13 | 1 << 27), said.success) == (0, False)


def test_a_login_with_a_terminal_works(host: Host) -> None:
    """sshd writes an audit record then, for which it needs CAP_AUDIT_WRITE."""
    done = _run([*build_ssh_base_args(host), "-tt", "echo in"])
    assert (done.returncode, done.stdout.strip()) == (0, "in"), done.stderr


def test_ping_works_for_root_and_others(lab: ProviderLab, host: Host) -> None:
    """Debian 12 gives ping a capability that the container has not, with which it does not even start."""
    install = "apt-get -qq update && apt-get -qq install --yes --no-install-recommends iputils-ping libcap2-bin"
    host.execute_stateful_command(f"DEBIAN_FRONTEND=noninteractive sh -c '{install}'", timeout_seconds=300)
    # As in an image that brings it along.
    lab.process().stop_host(host.id)
    started = lab.process().start_host(host.id)
    for address in ("127.0.0.1", "172.17.0.1"):
        ping = f"ping -c 1 -W 5 {address}"
        said = started.execute_idempotent_command(f"{ping} && setpriv --reuid=nobody --clear-groups {ping}")
        assert said.success, said.stderr


def test_the_state_container_can_do_nothing_but_look_at_the_records(lab: ProviderLab, host: Host) -> None:
    keeper = "$(docker ps -q --filter label=com.imbue.mngr.type=state-container)"
    (found,) = json.loads(lab.on_vps(host.id, f"docker inspect {keeper}"))
    settings = found["HostConfig"]
    assert found["State"]["Running"] and found["RestartCount"] == 0
    assert [(mount["Destination"], mount["RW"]) for mount in found["Mounts"]] == [("/mngr-state", False)]
    assert (settings["ReadonlyRootfs"], settings["NetworkMode"], settings["CapDrop"]) == (True, "none", ["ALL"])
    assert (settings["SecurityOpt"], settings["LogConfig"]["Type"]) == (["no-new-privileges"], "local")
    assert (settings["PidsLimit"], settings["Memory"]) == (64, 64 << 20)
    look = "cat /mngr-state/host_state/*.json; touch /mngr-state/x /x || echo refused"
    seen = lab.on_vps(host.id, f"docker exec {keeper} sh -c '{look}' 2>/dev/null")
    assert host.id in seen and seen.endswith("refused\n")
    # Its first process heeds a stop at once, and it comes back.
    began = time.monotonic()
    lab.on_vps(host.id, f"docker restart --time 30 {keeper}")
    assert time.monotonic() - began < 20
    assert lab.on_vps(host.id, f"docker inspect --format {{{{.State.Running}}}} {keeper}").strip() == "true"


def test_a_container_that_eats_all_memory_is_ended(lab: ProviderLab, host: Host) -> None:
    eaten = host.execute_stateful_command("tail /dev/zero", timeout_seconds=120)
    assert not eaten.success
    assert (
        lab.on_vps(host.id, "docker info --format {{.ContainersRunning}}; pgrep -x sshd | head -1").split()[0] == "2"
    )
    with lab.process().outer_host_for(host.id) as outer:
        assert outer is not None
        assert outer.execute_idempotent_command("echo alive").stdout == "alive"
    assert host.execute_idempotent_command("echo alive").stdout == "alive"


def shown_host_key(lab: ProviderLab, host: Host) -> str:
    """The host key that the VPS shows."""
    return lab.on_vps(
        host.id, "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | sed '/^#/d' | cut -d ' ' -f 2,3"
    ).strip()


def test_the_host_key_that_the_cloud_knows_is_worth_nothing(lab: ProviderLab, host: Host) -> None:
    provider = lab.process()
    injected, shown = provider.context.keys.vps_host_key(host.id), shown_host_key(lab, host)
    assert shown.startswith("ssh-ed25519 ") and shown != injected.public_key
    pinned = provider.context.vps_known_hosts.path.read_text()
    assert {line.split(" ", 1)[1] for line in pinned.splitlines()} == {shown}
    record = provider._find_host_record(host.id)
    assert record is not None and record.ssh_host_public_key == shown
    assert files_with_key(lab, host, injected) == ""


def test_an_injected_host_key_that_stays_is_reported(lab: ProviderLab, host: Host) -> None:
    """sshd of OpenSSH 9.8 and newer refuses addresses from which many connections end without a login."""
    public_key = "/etc/ssh/ssh_host_ed25519_key.pub"
    lab.on_vps(host.id, f"cp {public_key} {public_key}.kept && echo ssh-ed25519 {'A' * 68} >{public_key}")
    provider = lab.process()
    address = provider.hosts.entry(host.id).vps_ip
    assert address is not None
    try:
        with pytest.raises(RemoteCommandError, match="sshd still shows its old host key"):
            activate_host_key(provider.context.vps(address, host.id), "ssh-ed25519 another")
        assert shown_host_key(lab, host).startswith("ssh-ed25519 ")
    finally:
        lab.on_vps(host.id, f"mv {public_key}.kept {public_key}")


def files_with_key(lab: ProviderLab, host: Host, pair: KeyPair) -> str:
    """The files of a VPS that hold a line of a private key, as it is or in base64, wherever in a text it began."""
    line = pair.private_key_path.read_text().splitlines()[2].encode()
    encoded = [b64encode(bytes(shift) + line)[4 * bool(shift) : -4].decode() for shift in range(3)]
    patterns = " ".join(f"-e '{text}'" for text in (line.decode(), *encoded))
    return lab.on_vps(host.id, f"grep -rlF {patterns} /var/lib/cloud /run /etc /root /usr/local /var/log || true")


def test_encoded_and_compressed_copies_of_the_user_data_do_not_stay(lab: ProviderLab, host: Host) -> None:
    provider, instance, run = lab.process(), "/var/lib/cloud/instances/i", "/run/cloud-init"
    injected = provider.context.keys.vps_host_key(host.id)
    user_data = shlex.quote(injected.private_key_path.read_text())
    # Of the first, what is in it tells, and of the others only the name.
    plain = [f"{instance}/another", f"{run}/combined-cloud-config.json"]
    encoded = [f"{instance}/user-data.txt", f"{instance}/obj.pkl", f"{run}/instance-data-sensitive.json"]
    compressed = [f"{instance}/cloud-config.txt", "/var/lib/cloud/seed/nocloud/user-data", f"{run}/instance-data.json"]
    lab.on_vps(host.id, f"mkdir -p {instance}; printf %s {user_data} | tee {' '.join(plain)}")
    lab.on_vps(host.id, f"printf %s {user_data} | base64 --wrap=0 | tee {' '.join(encoded)}")
    lab.on_vps(host.id, f"printf %s {user_data} | gzip | tee {' '.join(compressed)} >/dev/null")
    assert set(files_with_key(lab, host, injected).split()) == {*plain, *encoded}
    address = provider.hosts.entry(host.id).vps_ip
    assert address is not None
    activate_host_key(provider.context.vps(address, host.id), shown_host_key(lab, host))
    assert files_with_key(lab, host, injected) == ""
    assert lab.on_vps(host.id, f"ls {' '.join((*plain, *encoded, *compressed))} 2>/dev/null || true") == ""


def test_a_key_stolen_from_the_user_data_is_refused(lab: ProviderLab, host: Host) -> None:
    injected = lab.process().context.keys.vps_host_key(host.id).private_key_path.read_text()
    key = "/etc/ssh/ssh_host_ed25519_key"
    sent = "/root/sent"
    lab.on_vps(host.id, f"cp -p {key} {key}.own && printf %s {shlex.quote(injected)} >{key} && systemctl reload ssh")
    try:
        provider = lab.process()
        provider.context.close_connections(host.id, provider.hosts.entry(host.id).vps_ip)
        assert states(provider) == {host.id: HostState.UNAUTHENTICATED}
        with provider.outer_host_for(host.id) as outer:
            assert outer is not None
            with pytest.raises(VpsAuthenticationError, match="host key"):
                outer.execute_idempotent_command(f"touch {sent}")
    finally:
        lab.on_vps(host.id, f"mv {key}.own {key} && systemctl reload ssh")
    assert lab.on_vps(host.id, f"ls {sent} 2>/dev/null || true") == ""
    assert states(lab.process()) == {host.id: HostState.RUNNING}


def test_after_a_reboot_a_vps_shows_only_its_own_key(lab: ProviderLab, host: Host) -> None:
    shown = shown_host_key(lab, host)
    run_docker("restart", lab.instance_of(host.id), timeout_seconds=120)
    lab.wait_for_vps(host.id)
    assert shown_host_key(lab, host) == shown
    assert lab.on_vps(host.id, "grep -rl -e 'PRIVATE KEY-----' /var/lib/cloud /run/cloud-init || true") == ""
    assert files_with_key(lab, host, lab.process().context.keys.vps_host_key(host.id)) == ""
    assert lab.process().start_host(host.id).execute_idempotent_command("echo up").stdout == "up"


@pytest.mark.parametrize("port", [22, 2222], ids=["VPS", "container"])
def test_idle_connections_from_another_address_keep_nobody_out(
    lab: ProviderLab, host: Host, os_id: str, port: int
) -> None:
    context, address = lab.process().context, lab.cloud.get_instance_ip(lab.instance_of(host.id))
    machine = context.vps(address, host.id) if port == 22 else context.container(address, host.id)
    login = shlex.split(machine.ssh_command("true"))
    # What sshd itself does about them, without the firewall that makes them take half a minute.
    lab.on_vps(host.id, "iptables -t raw -F")
    hold = f"held = [socket.create_connection(('{address}', {port})) for _ in range(260)]"
    script = f"import socket, time\n{hold}\nprint('held', flush=True)\ntime.sleep(600)"
    (network,) = json.loads(run_docker("inspect", lab.instance_of(host.id)))[0]["NetworkSettings"]["Networks"]
    options = ("--detach", f"--network={network}", "--entrypoint=python3")
    neighbour = run_docker("run", *options, require_image(os_id), "-c", script).strip()
    try:
        wait_for(lambda: run_docker("logs", neighbour) == "held\n", 60)
        refused = [done.stderr for _ in range(10) if (done := _run(login)).returncode != 0]
    finally:
        run_docker("rm", "--force", neighbour)
        lab.on_vps(host.id, "mngr-vps-setup firewall")
    assert refused == []


def _run(argv: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def test_a_user_with_many_keys_gets_in_by_mngr_s_own_ssh(host: Host, tmp_path: Path) -> None:
    """OpenSSH offers all keys of an agent before the one that mngr names."""
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        wait_for(socket.exists)
        for number in range(10):
            key = load_or_create_key_pair(tmp_path / f"key{number}").private_key_path
            assert _run(["ssh-add", str(key)], SSH_AUTH_SOCK=str(socket)).returncode == 0
        done = _run([*build_ssh_base_args(host), "echo in"], SSH_AUTH_SOCK=str(socket))
    finally:
        agent.terminate()
        agent.wait(10)
    assert done.stdout == "in\n", done.stderr


def test_the_sshd_of_a_container_lets_in_by_key_only_and_forwards_nothing(lab: ProviderLab, host: Host) -> None:
    settings = host.execute_idempotent_command(
        "/usr/sbin/sshd -T -f /mngr-vol/.sshd/sshd_config -C user=root,host=h,addr=192.0.2.1"
    )
    assert settings.success, settings.stderr
    assert {
        "authenticationmethods publickey",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitrootlogin without-password",
        "permitemptypasswords no",
        "allowagentforwarding no",
        "x11forwarding no",
        "logingracetime 20",
        "persourcemaxstartups 10",
        "persourcenetblocksize 32:64",
    } <= set(settings.stdout.lower().splitlines())


def test_a_snapshot_holds_no_key_and_no_secret(lab: ProviderLab, host: Host) -> None:
    """Every byte of every layer, and what docker says of the image."""
    host.set_env_vars({"TOKEN": SECRET})
    host.execute_stateful_command(f"cat >/dev/null; echo {KEPT} >/etc/kept", env={"TOKEN": SECRET})
    provider = lab.process()
    snapshot = provider.create_snapshot(host.id, SnapshotName("s1"))
    keys = provider.context.keys
    held = content_of_image(lab, host, snapshot)
    pairs: list[KeyPair] = [
        keys.container_host_key(host.id),
        keys.container_client_key(host.id),
        keys.vps_client_key(),
        keys.vps_host_key(host.id),
    ]
    for pair in pairs:
        lines = pair.private_key_path.read_text().splitlines()[1:-1]
        assert [line for line in lines if line.encode() in held] == []
        assert pair.public_key.split()[1].encode() not in held
    assert SECRET.encode() not in held
    assert KEPT.encode() in held


def content_of_image(lab: ProviderLab, host: Host, image: str) -> bytes:
    """All files of all layers of an image, one after the other."""
    done = subprocess.run(
        ["docker", "exec", lab.instance_of(host.id), "docker", "save", image], capture_output=True, check=True
    )
    parts = [lab.on_vps(host.id, f"docker inspect {image}").encode()]
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            content = b"" if file is None else file.read()
            # Layers are archives in the archive, by names that differ from version to version.
            parts += _files(content) if content[257:262] == b"ustar" else [content]
    return b"\n".join(parts)


def _files(layer: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                yield file.read()


@pytest.mark.parametrize("port", [22, 2222], ids=["VPS", "container"])
def test_an_audit_finds_nothing_wrong_with_sshd(lab: ProviderLab, host: Host, port: int) -> None:
    """The last test here: OpenSSH from 9.8 on refuses our address for a while, after so many connections."""
    info = host.get_ssh_connection_info()
    assert info is not None
    audit = subprocess.run(
        [sys.executable, "-m", "ssh_audit.ssh_audit", "--json", "-p", str(port), info[1]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    report = json.loads(audit.stdout)
    failures = [
        (kind, algorithm["algorithm"], algorithm["notes"]["fail"])
        for kind in ("kex", "key", "enc", "mac")
        for algorithm in report[kind]
        if algorithm["notes"].get("fail")
    ]
    assert (failures, report["cves"]) == ([], [])
    assert not [note for note in report["additional_notes"] if "insufficient connection throttling" in note]
    assert [key["algorithm"] for key in report["key"]] == ["ssh-ed25519"]
