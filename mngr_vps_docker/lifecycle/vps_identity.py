"""Replacing the host key that a VPS got in its user data by one that it generates.

What is in user data can be read as long as the VPS exists: by every process on it from the cloud's metadata service,
and in the cloud's console. So the injected key is valid for the first login only. The change has two steps, and
between them both public keys are pinned: a process that is killed at any point is not locked out.
"""

import re
from typing import Final

from imbue.mngr_vps_docker.errors import VpsProvisioningError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import Effect

_KEY: Final = "/etc/ssh/ssh_host_ed25519_key"
_NEW_KEY: Final = f"{_KEY}.mngr-new"
_PUBLIC_KEY: Final = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}")
_TIMEOUT_SECONDS: Final = 60.0

# Prints the public half of the new key; one that an earlier attempt generated is used.
_MAKE: Final = f"""\
umask 077
[ -s {_NEW_KEY}.pub ] || {{ rm -f {_NEW_KEY}; ssh-keygen -q -t ed25519 -N '' -C '' -f {_NEW_KEY}; }} || exit 1
sync {_NEW_KEY} {_NEW_KEY}.pub /etc/ssh
cut -d ' ' -f 1,2 {_NEW_KEY}.pub
"""

# cloud-init is done. At a later boot it would write its copies again and, where its source is one of them, take the
# VPS for a new one. Copies are removed by content and, since some are encoded or compressed, by name.
# (The brackets keep these very words out of the command log, which is searched for keys.)
#
# Since OpenSSH 9.8 ssh-keyscan writes its comments to stdout, and sshd refuses an address for a while from which too
# many connections end without a login: hence few scans.
_TAKE: Final = f"""\
shown_key() {{ ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | sed '/^#/d' | cut -d ' ' -f 2,3; }}
touch /etc/cloud/cloud-init.disabled || exit 1
if [ -e {_NEW_KEY} ]; then
  mv -f {_NEW_KEY} {_KEY} && mv -f {_NEW_KEY}.pub {_KEY}.pub && sync /etc/ssh || exit 1
fi
for unit in ssh sshd; do
  if systemctl is-active --quiet "$unit"; then systemctl reload "$unit"; break; fi
done
grep -rlZ -e 'PRIVATE[ ]KEY-----' /var/lib/cloud /run/cloud-init 2>/dev/null | xargs -0 -r rm -f
rm -f /var/lib/cloud/seed/*/user-data* /run/cloud-init/instance-data*.json /run/cloud-init/combined-cloud-config.json
for instance in /var/lib/cloud/instances/*; do
  rm -f "$instance"/user-data* "$instance"/cloud-config.txt* "$instance"/obj.pkl
done
tries=0
until [ "$(shown_key)" = "$(cut -d ' ' -f 1,2 {_KEY}.pub)" ]; do
  tries=$((tries + 1))
  [ $tries -lt 10 ] || {{ echo 'sshd still shows its old host key' >&2; exit 1; }}
  sleep 1
done
cut -d ' ' -f 1,2 {_KEY}.pub
"""


def generate_host_key(vps: SshConnection) -> str:
    """Generate a host key on the VPS, not yet used, and return its public half ("ssh-ed25519 AAAA…").

    Raises VpsProvisioningError for any other answer, and what a failed command raises.
    """
    return _public_key(vps, _MAKE, purpose="make the VPS a host key of its own")


def activate_host_key(vps: SshConnection, public_key: str) -> None:
    """Let sshd of the VPS use the generated key, and remove every copy of the injected one.

    Raises VpsProvisioningError if sshd shows another key than ``public_key``.
    """
    shown = _public_key(vps, _TAKE, purpose="put the VPS's own host key in place")
    if shown != public_key:
        raise VpsProvisioningError(f"The VPS shows the host key '{shown}' instead of '{public_key}'")


def _public_key(vps: SshConnection, script: str, *, purpose: str) -> str:
    outcome = vps.run(script, purpose=purpose, timeout_seconds=_TIMEOUT_SECONDS, effect=Effect.IDEMPOTENT).checked()
    answer = outcome.text.strip()
    if not _PUBLIC_KEY.fullmatch(answer):
        raise VpsProvisioningError(f"Could not {purpose}: it answered {answer[:100]!r}")
    return answer
