import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsDockerError
from imbue.mngr_vps_docker.state.keys import ProviderKeys, load_or_create_key_pair

KEYGEN = "ssh-keygen"


def _ssh_keygen(*args: str) -> str:
    return subprocess.run((KEYGEN, *args), check=True, capture_output=True, text=True, timeout=60).stdout


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_pair_is_ed25519_private_and_known_to_ssh_keygen(tmp_path: Path) -> None:
    pair = load_or_create_key_pair(tmp_path / "keys" / "k", comment="some host")
    assert pair.public_key.startswith("ssh-ed25519 AAAA")
    assert _ssh_keygen("-y", "-f", str(pair.private_key_path)).split()[:2] == pair.public_key.split()
    assert (tmp_path / "keys" / "k.pub").read_text() == f"{pair.public_key} some host\n"
    assert (_mode(tmp_path / "keys"), _mode(pair.private_key_path)) == (0o700, 0o600)


def test_a_pair_is_made_once_however_many_ask_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        pairs = set(pool.map(lambda _: load_or_create_key_pair(tmp_path / "k"), range(64)))
    assert len(pairs) == 1


@pytest.mark.parametrize("form", ["PEM", "RFC4716"])
def test_an_existing_rsa_key_is_kept(tmp_path: Path, form: str) -> None:
    path = tmp_path / "vps_ssh_key"
    _ssh_keygen("-q", "-t", "rsa", "-b", "2048", "-m", form, "-N", "", "-f", str(path))
    before = path.read_bytes()
    path.chmod(0o644)
    path.with_name("vps_ssh_key.pub").unlink()
    pair = load_or_create_key_pair(path)
    assert pair.public_key.startswith("ssh-rsa ")
    assert path.read_bytes() == before
    assert _mode(path) == 0o600
    assert path.with_name("vps_ssh_key.pub").read_text().split() == pair.public_key.split()


@pytest.mark.parametrize("content", ["", "not a key", "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n"])
def test_an_unusable_key_is_refused_by_name_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "k"
    path.write_text(content)
    with pytest.raises(VpsDockerError, match=str(path)) as caught:
        load_or_create_key_pair(path)
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    _ssh_keygen("-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "k"))
    with pytest.raises(VpsDockerError, match="passphrase"):
        _ = load_or_create_key_pair(tmp_path / "k").public_key


def test_each_host_has_three_keys_of_its_own_and_one_key_opens_every_vps(tmp_path: Path) -> None:
    keys = ProviderKeys(tmp_path)
    hosts = [HostId.generate(), HostId.generate()]
    pairs = []
    for host_id in hosts:
        created = keys.create_vps_host_key(host_id)
        assert created == keys.vps_host_key(host_id)
        pairs += [created, keys.container_host_key(host_id), keys.container_client_key(host_id)]
    assert len({pair.public_key for pair in [*pairs, keys.vps_client_key()]}) == 7
    assert keys.vps_client_key() == ProviderKeys(tmp_path).vps_client_key()
    assert {path.name for path in (tmp_path / "hosts" / hosts[0]).glob("*_key")} == {
        "vps_host_key",
        "container_host_key",
        "container_ssh_key",
    }


def test_a_host_of_version_0_1_0_keeps_the_keys_shared_by_all(tmp_path: Path) -> None:
    names = ("vps_ssh_key", "host_key", "container_host_key", "container_ssh_key")
    old = {name: load_or_create_key_pair(tmp_path / "keys" / name) for name in names}
    keys, host_id = ProviderKeys(tmp_path), HostId.generate()
    found = (
        keys.vps_client_key(),
        keys.vps_host_key(host_id),
        keys.container_host_key(host_id),
        keys.container_client_key(host_id),
    )
    assert found == tuple(old.values())

    new_host = HostId.generate()
    keys.create_vps_host_key(new_host)
    assert keys.container_host_key(new_host) != old["container_host_key"]


def test_a_host_of_another_machine_has_no_keys_here_and_gets_none(tmp_path: Path) -> None:
    host_id = HostId.generate()
    with pytest.raises(VpsAuthenticationError, match=str(host_id)):
        ProviderKeys(tmp_path).container_client_key(host_id)
    assert not (tmp_path / "hosts").exists()
