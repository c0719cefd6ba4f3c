"""``python -m imbue.mngr_local_vps``: build the images of local VPSes, list VPSes and remove them."""

import argparse
import sys
from collections.abc import Sequence

from imbue.mngr_local_vps.clean import clean
from imbue.mngr_local_vps.client import DEFAULT_ACCOUNT, LocalVpsClient
from imbue.mngr_local_vps.images import DEFAULT_IMAGES, ensure_images
from imbue.mngr_local_vps.operating_systems import OPERATING_SYSTEMS
from imbue.mngr_vps_docker.errors import VpsDockerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status; an error is one message on stderr."""
    parser = argparse.ArgumentParser(prog="python -m imbue.mngr_local_vps", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    image_parser = commands.add_parser("image", help="build the images that VPSes boot from, if missing")
    image_parser.add_argument(
        "os", nargs="*", metavar="OS", help=f"{', '.join(OPERATING_SYSTEMS)} (default: {' '.join(DEFAULT_IMAGES)})"
    )
    list_parser = commands.add_parser("list", help="list the VPSes")
    list_parser.add_argument("--account", default=DEFAULT_ACCOUNT, help="owner of the VPSes (default: %(default)s)")
    clean_parser = commands.add_parser("clean", help="remove every VPS, volume, key, snapshot and network")
    clean_parser.add_argument("--account", help="remove only this account's (default: all accounts)")
    clean_parser.add_argument("--images", action="store_true", help="remove the VPS images too")
    options = parser.parse_args(arguments)
    try:
        if options.command == "image":
            ensure_images(_say, options.os or DEFAULT_IMAGES)
        elif options.command == "list":
            for instance in LocalVpsClient(account=options.account).find_instances({}):
                tags = " ".join(f"{name}={value}" for name, value in instance.tags.items())
                sys.stdout.write(f"{instance.id}  {instance.status}  {instance.address or '-'}  {tags}\n")
        else:
            for removed in clean(options.account, with_images=options.images):
                _say(f"removed {removed}")
    except VpsDockerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"local VPS: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
