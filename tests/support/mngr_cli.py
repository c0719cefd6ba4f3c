"""The real mngr command line with state, settings and a local cloud account of its own."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imbue.mngr_local_vps.clean import clean
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.engine import lines_of, run_docker
from imbue.mngr_local_vps.labels import ACCOUNT_LABEL
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from imbue.mngr_vps_docker.vps_client import VpsClientInterface
from support.local_provider import LocalProvider, local_provider, settings_of_os

COMMAND_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class MngrCli:
    """``mngr`` run in ``project`` (a git checkout with a Dockerfile); hosts are made as ``<name>.<backend>``.

    Their VPSes have the operating system ``os_id``. ``packages`` is a folder of further packages that are installed.
    """

    folder: Path
    os_id: str
    backend: str = "local-vps"
    packages: Path | None = None
    account: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")

    @property
    def project(self) -> Path:
        """The checkout in which mngr runs."""
        return self.folder / "project"

    @property
    def host_dir(self) -> Path:
        """mngr's state on this machine."""
        return self.folder / "mngr"

    @property
    def prefix(self) -> str:
        """mngr's prefix: what containers are called by."""
        return f"{self.account}-"

    @property
    def profile(self) -> Path:
        """The folder of mngr's one profile."""
        (profile,) = (self.host_dir / "profiles").iterdir()
        return profile

    @property
    def cloud(self) -> LocalVpsClient:
        """This account of the local cloud."""
        return LocalVpsClient(account=self.account)

    def provider(self, client: VpsClientInterface | None = None, **settings: Any) -> LocalProvider:
        """The provider as a new process of this mngr has it."""
        settings = settings_of_os(self.os_id) | settings
        return local_provider(self.profile, self.account, client or self.cloud, **settings)

    def set_up(self, provider_settings: str = "") -> None:
        """Make the checkout and the settings; ``provider_settings`` are further TOML lines of the provider."""
        self.project.mkdir(parents=True)
        dockerfile = f'FROM {agent_image_of_os(self.os_id)}\nRUN echo "from the Dockerfile" > /etc/built\n'
        (self.project / "Dockerfile").write_text(dockerfile)
        (self.project / "notes.txt").write_text("first line\n")
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "Test")
        self.git("config", "user.email", "test@localhost")
        self.commit("Start")
        settings = "\n".join(f'{name} = "{value}"' for name, value in settings_of_os(self.os_id).items())
        # The first command makes the profile, into which the settings go before any backend is asked.
        self("config", "list")
        (self.profile / "settings.toml").write_text(
            f'enabled_backends = ["local", "{self.backend}"]\n'
            f"[providers.{self.backend}]\n"
            f'backend = "{self.backend}"\n'
            f'account = "{self.account}"\n'
            f"{settings}\n{provider_settings}\n"
        )

    def tear_down(self) -> None:
        """Remove everything that this account has on the engine, and what mngr's state knows of it."""
        for _ in clean(self.account):
            pass
        for folder in self.host_dir.glob("profiles/*/providers"):
            shutil.rmtree(folder)

    def __call__(self, *arguments: str, is_failure_expected: bool = False) -> str:
        """Run mngr and return its standard output; its exit code must be 0, or must not be where that is expected."""
        done = self.run(*arguments)
        said = f"mngr {' '.join(arguments)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) == is_failure_expected, said
        return done.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run mngr and return how it ended."""
        return subprocess.run(
            [Path(sys.executable).with_name("mngr"), *arguments],
            cwd=self.project,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        """This process's environment, with settings of mngr replaced by the test's."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MNGR_")}
        return inherited | {
            "MNGR_HOST_DIR": str(self.host_dir),
            "MNGR_PREFIX": self.prefix,
            "MNGR_HEADLESS": "1",
            **({} if self.packages is None else {"PYTHONPATH": str(self.packages)}),
        }

    def leftovers(self) -> list[str]:
        """What is left of hosts: at the cloud, on the engine, and in mngr's state on this machine."""
        provider = self.profile / "providers" / self.backend / self.backend
        account = f"--filter=label={ACCOUNT_LABEL}={self.account}"
        listings = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        engine = (lines_of(run_docker(*listing, "--quiet", account)) for listing in listings)
        pinned = (path.read_text().splitlines() for path in provider.glob("**/*known_hosts"))
        folders = (str(path) for path in provider.glob("hosts/host-*"))
        return [*(name for names in engine for name in names), *(line for lines in pinned for line in lines), *folders]

    def json(self, *arguments: str) -> dict[str, Any]:
        """Run mngr with ``--format json`` and return its answer."""
        answer: dict[str, Any] = json.loads(self(*arguments, "--format", "json"))
        return answer

    def agents(self) -> list[dict[str, Any]]:
        """What ``mngr list`` shows, which must be without errors."""
        listing = self.json("list")
        assert listing["errors"] == []
        agents: list[dict[str, Any]] = listing["agents"]
        return agents

    def git(self, *arguments: str) -> None:
        """Run git in the checkout."""
        subprocess.run(["git", *arguments], cwd=self.project, check=True, capture_output=True, timeout=60)

    def commit(self, message: str) -> None:
        """Commit all that is in the checkout."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
