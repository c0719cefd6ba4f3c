"""Remove what this provider made on the engine, and nothing else."""

from collections.abc import Iterator

from imbue.mngr_local_vps.engine import lines_of, remove_if_there, remove_machine, run_docker
from imbue.mngr_local_vps.labels import NAME_PREFIX, SNAPSHOT_REPOSITORY, Kind, label_filters


def clean(account: str | None = None, *, with_images: bool = False) -> Iterator[str]:
    """Remove every VPS, disk, key, network and snapshot of one account (None: all accounts); yield the name of each.

    ``with_images`` also removes the images that VPSes boot from, which take minutes to build.
    Raises VpsApiError at the first object that cannot be removed; a second call continues there.
    """
    for name in lines_of(run_docker("ps", "--all", "--format={{.Names}}", *label_filters(Kind.INSTANCE, account))):
        remove_machine(name)
        yield f"VPS {name}"
    for what, kind in (("disk", Kind.INSTANCE_DISK), ("ssh key", Kind.SSH_KEY)):
        yield from _remove(what, ("volume", "ls", "--quiet"), kind, account, "volume", "rm", "--force")
    yield from _remove("network", ("network", "ls", "--format={{.Name}}"), Kind.NETWORK, account, "network", "rm")
    listing = ("image", "ls", "--format={{.Repository}}:{{.Tag}}", f"--filter=reference={SNAPSHOT_REPOSITORY}")
    yield from _remove("snapshot", listing, Kind.SNAPSHOT, account, "image", "rm")
    if with_images:
        # Newest first, as docker lists them: an image cannot be removed before the images built from it.
        for name in lines_of(run_docker("image", "ls", "--format={{.Repository}}:{{.Tag}}", NAME_PREFIX)):
            remove_if_there("image", "rm", name)
            yield f"image {name}"


def _remove(what: str, listing: tuple[str, ...], kind: Kind, account: str | None, *removal: str) -> Iterator[str]:
    for name in lines_of(run_docker(*listing, *label_filters(kind, account))):
        remove_if_there(*removal, name)
        yield f"{what} {name}"
