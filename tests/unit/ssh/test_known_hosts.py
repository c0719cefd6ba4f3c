"""The generated known_hosts file holds exactly the keys that were pinned."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.known_hosts import KnownHostsFile, address_name
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair


@pytest.fixture
def known_hosts(tmp_path: Path) -> KnownHostsFile:
    return KnownHostsFile(tmp_path / "keys" / "known_hosts")


def test_a_pinned_key_replaces_the_older_one_of_that_name_only(known_hosts: KnownHostsFile) -> None:
    known_hosts.pin(("host-1", "192.0.2.1"), "ssh-ed25519 OLD comment")
    known_hosts.pin(("192.0.2.1",), "ssh-ed25519 NEW")
    assert known_hosts.path.read_text() == "host-1 ssh-ed25519 OLD\n192.0.2.1 ssh-ed25519 NEW\n"


def test_forgetting_leaves_the_others(known_hosts: KnownHostsFile) -> None:
    known_hosts.pin(("a", "b"), "ssh-ed25519 KEY")
    known_hosts.unpin("a")
    known_hosts.unpin("never there", ["nor there"])
    assert known_hosts.path.read_text() == "b ssh-ed25519 KEY\n"


def test_an_address_that_another_machine_has_by_now_stays_pinned(known_hosts: KnownHostsFile) -> None:
    known_hosts.pin(("old", "192.0.2.1"), "ssh-ed25519 OLD")
    known_hosts.pin(("new", "192.0.2.1"), "ssh-ed25519 NEW")
    known_hosts.unpin("old", ["192.0.2.1"])
    assert known_hosts.path.read_text() == "192.0.2.1 ssh-ed25519 NEW\nnew ssh-ed25519 NEW\n"
    known_hosts.unpin("new", ["192.0.2.1"])
    assert known_hosts.path.read_text() == ""


def test_an_address_whose_key_is_known_from_elsewhere_is_forgotten(known_hosts: KnownHostsFile) -> None:
    known_hosts.pin(("192.0.2.1",), "ssh-ed25519 KEY")
    known_hosts.unpin("host-1", ["192.0.2.1"], "ssh-ed25519 KEY comment")
    assert known_hosts.path.read_text() == ""


def test_names_that_share_a_line_are_taken_apart(known_hosts: KnownHostsFile) -> None:
    known_hosts.path.parent.mkdir()
    known_hosts.path.write_text("# by 0.1.0\n192.0.2.1,192.0.2.2 ssh-ed25519 KEY\n")
    known_hosts.unpin("192.0.2.1")
    assert known_hosts.path.read_text() == "# by 0.1.0\n192.0.2.2 ssh-ed25519 KEY\n"


def test_forgetting_in_a_file_that_is_not_there_makes_none(known_hosts: KnownHostsFile) -> None:
    known_hosts.unpin("a")
    assert not known_hosts.path.exists()


def test_pins_from_many_threads_are_all_there(known_hosts: KnownHostsFile) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: known_hosts.pin((f"host-{number}",), "ssh-ed25519 KEY"), range(50)))
    assert len(known_hosts.path.read_text().splitlines()) == 50


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 22), ("192.0.2.1", 2222), ("2001:db8::1", 2222), ("x.de", 22)]
)
def test_openssh_finds_what_was_pinned(known_hosts: KnownHostsFile, tmp_path: Path, host: str, port: int) -> None:
    key = load_or_create_key_pair(tmp_path / "key").public_key
    known_hosts.pin((address_name(host, port),), key)
    found = subprocess.run(
        ["ssh-keygen", "-F", address_name(host, port), "-f", known_hosts.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert key in found.stdout


def test_a_name_adopts_the_keys_of_another_unless_it_has_its_own(known_hosts: KnownHostsFile) -> None:
    known_hosts.adopt("host-1", "192.0.2.1")
    assert not known_hosts.path.exists()
    known_hosts.path.parent.mkdir()
    known_hosts.path.write_text("192.0.2.1 ssh-ed25519 KEY\n192.0.2.1 ssh-rsa OTHER\nhost-2 ssh-ed25519 OWN\n")
    known_hosts.adopt("host-1", "192.0.2.1")
    known_hosts.adopt("host-2", "192.0.2.1")
    added = known_hosts.path.read_text().splitlines()[2:]
    assert added == ["host-2 ssh-ed25519 OWN", "host-1 ssh-ed25519 KEY", "host-1 ssh-rsa OTHER"]
