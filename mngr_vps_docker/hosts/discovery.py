"""Finding hosts: what the cloud lists, what each VPS says, and what this machine remembers, joined into one picture.

Nothing is concluded from silence. A VPS that cannot be read keeps its host in the picture, as last seen and with the
reason; only the cloud's own word that an instance does not exist makes a host count as gone.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsApiError, VpsConnectionError, VpsDockerError, describe_error
from imbue.mngr_vps_docker.hosts.cloud_resources import UploadedKey, delete_leftover_keys, uploaded_keys
from imbue.mngr_vps_docker.hosts.host_access import HOST_ID_TAG, HOST_NAME_TAG, PROVIDER_TAG, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.timings import Patience
from imbue.mngr_vps_docker.hosts.vps_reader import MAX_PARALLEL_READINGS, Prefetch, Read, VpsReader
from imbue.mngr_vps_docker.primitives import VpsInstanceStatus, replace
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo


def discover(
    reader: VpsReader,
    found_by_package: Mapping[HostId, LocalHostRecord],
    just_seen: Mapping[HostId, ObservedHost],
    *,
    is_silent_awaited: bool = True,
) -> dict[HostId, ObservedHost]:
    """Find every host of the provider, by id; ``found_by_package`` is what a provider package found by its own means.

    The VPSes of ``just_seen`` hosts are asked again only if the cloud says that they are at another address. A VPS
    that was silent when it was last asked is waited for briefly, or with ``is_silent_awaited=False`` no longer than
    the others take: its host is as last seen then, with its late answer. Raises ProviderUnavailableError if the cloud
    cannot be asked.
    """
    context = reader.context
    with _threads() as pool:
        asked_for_keys = pool.submit(uploaded_keys, context)
        probably_there = (
            ObservedHost(entry)
            for entry in context.local_store.read_all()
            if entry.gone_since is None and entry.host_id not in just_seen
        )
        prefetch = Prefetch(reader, probably_there)
        with asking_the_cloud(context):
            instances = context.client.find_instances({PROVIDER_TAG: context.provider_name})
        keys = asked_for_keys.result()
        by_host = _by_host(instances or ())
        # In this order: a host that another process is making is not taken for one of another machine.
        entries = {entry.host_id: entry for entry in context.local_store.read_all()}
        delete_leftover_keys(context, entries.values())

        def of_known(entry: LocalHostRecord) -> list[ObservedHost]:
            return _of_known(reader, entry, by_host.get(entry.host_id, ()))

        observed_hosts = [observed for found in pool.map(of_known, entries.values()) for observed in found]
        if instances is None and not found_by_package:
            _check_that_any_is_told(context, observed_hosts)
        for host_id in by_host.keys() - entries.keys():
            observed_hosts += _of_unknown(host_id, by_host[host_id], keys.get(host_id))
        known = entries.keys() | by_host.keys()
        is_listed = instances is not None
        observed_hosts = [
            *(
                _with_package_record(observed, found_by_package.get(observed.host_id), is_listed=is_listed)
                for observed in observed_hosts
            ),
            *(
                _of_package_record(found, is_listed=is_listed)
                for host_id, found in found_by_package.items()
                if host_id not in known
            ),
        ]
        for host_id in keys.keys() - known - found_by_package.keys() if is_listed else ():
            observed_hosts += _of_lone_key(context, host_id, keys[host_id])

        def observe(observed: ObservedHost) -> ObservedHost:
            return _observe(reader, observed, just_seen.get(observed.host_id), prefetch.read, is_listed=is_listed)

        # Hosts that need a login first: they must not wait for those that need none.
        found = reader.read_each(
            observe, observed_hosts, begins_late=prefetch.has, is_silent_awaited=is_silent_awaited
        )
        return _settled(reader, found)


def discover_one(reader: VpsReader, host_id: HostId, patience: Patience | None = None) -> ObservedHost | None:
    """One host as it is now, asked for alone; None if neither this machine nor the cloud has anything of it.

    The cloud is asked only if the VPS does not answer where it was last; if neither does, the host is as last seen.
    The VPS is waited for with ``patience``, or as long as a listing waits.
    """

    def read(observed: ObservedHost) -> ObservedHost:
        return reader.read(observed, patience)

    context = reader.context
    entry = context.local_store.read(host_id)
    seen = None
    if entry is not None and entry.phase is HostPhase.READY and entry.vps_ip is not None and entry.gone_since is None:
        seen = reader.observe(ObservedHost(entry), read)
    if seen is None or not seen.is_read:
        instances = _instances_of(context, host_id)
        if entry is not None:
            observed_hosts = _of_known(reader, entry, instances or ())
        else:
            observed_hosts = _of_unknown_alone(context, host_id, instances)
        if not observed_hosts:
            return None
        is_listed = instances is not None
        seen = _best([_observe(reader, observed, seen, read, is_listed=is_listed) for observed in observed_hosts])
    return finished(reader, seen)


def finished(reader: VpsReader, observed: ObservedHost) -> ObservedHost:
    """A host that was seen alone, by the name that it can have."""
    return _finished(reader, observed, {entry.host_name for entry in reader.context.local_store.read_all()})


@contextmanager
def asking_the_cloud(context: ProviderContext) -> Iterator[None]:
    """Turn any exception of a provider package into ProviderUnavailableError, never into an empty list."""
    try:
        yield
    except Exception as error:
        raise ProviderUnavailableError(context.provider_name, describe_error(error)) from error


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for what takes long. An interruption does not wait for work that has not begun."""
    pool = ThreadPoolExecutor(MAX_PARALLEL_READINGS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_host(instances: Iterable[VpsInstanceInfo]) -> dict[HostId, list[VpsInstanceInfo]]:
    """The instances of each host. One that is being destroyed counts only if it is the only one."""
    found: dict[HostId, list[VpsInstanceInfo]] = {}
    for instance in sorted(instances, key=lambda instance: instance.status is VpsInstanceStatus.DESTROYING):
        try:
            host_id = HostId(instance.tags.get(HOST_ID_TAG, ""))
        except ValueError as error:
            logger.warning("Ignored VPS {}, whose {} tag is not a host id: {}", instance.id, HOST_ID_TAG, error)
            continue
        if instance.status is not VpsInstanceStatus.DESTROYING or host_id not in found:
            found.setdefault(host_id, []).append(instance)
    for host_id, several in found.items():
        if len(several) > 1:
            listed = ", ".join(instance.id for instance in several)
            logger.warning(
                "{} has more than one VPS, all of which are billed until it is destroyed: {}", host_id, listed
            )
    return found


def _instances_of(context: ProviderContext, host_id: HostId) -> Sequence[VpsInstanceInfo] | None:
    """What the cloud lists of one host, whichever provider's it is; None if it does not tell."""
    try:
        found = context.client.find_instances({HOST_ID_TAG: host_id})
    # A provider package's client may raise anything; the host is then asked for by the id of its VPS.
    except Exception as error:  # noqa: BLE001
        logger.debug("The cloud does not list the VPS of {}: {}", host_id, describe_error(error))
        return None
    return None if found is None else tuple(_by_host(found).get(host_id, ()))


def _of_known(reader: VpsReader, entry: LocalHostRecord, instances: Sequence[VpsInstanceInfo]) -> list[ObservedHost]:
    """A host that this machine knows, once for each VPS that may be its own; none if it was just destroyed."""
    if entry.phase is not HostPhase.READY:
        if reader.context.local_store.is_owned(entry.host_id):
            return [ObservedHost(entry, is_being_made=True)]
        # The process that made it has ended, but perhaps after the entry was read: by now it may be finished, or gone.
        current = reader.context.local_store.read(entry.host_id)
        if current is None:
            return []
        entry = current
    own = [instance for instance in instances if instance.id == entry.vps_instance_id] or instances
    if not own:
        return [_of_unlisted(reader, entry)]
    if own[0].status is VpsInstanceStatus.DESTROYING:
        return [_gone(reader, entry)]
    if len(own) > 1:
        # The right one is saved once its record is read.
        return [ObservedHost(_with_vps(entry, one)) for one in own]
    return [ObservedHost(reader.save(entry, lambda entry: replace(_with_vps(entry, own[0]), gone_since=None)))]


def _with_vps(entry: LocalHostRecord, instance: VpsInstanceInfo) -> LocalHostRecord:
    """The entry with the VPS's id and address. The cloud knows the address best: some give a machine a new one."""
    return replace(entry, vps_instance_id=instance.id, vps_ip=instance.address or entry.vps_ip)


def _of_unlisted(reader: VpsReader, entry: LocalHostRecord) -> ObservedHost:
    """A host that this machine remembers and the cloud did not list; listings lag, so the cloud is asked by id."""
    if entry.vps_instance_id is None:
        return ObservedHost(entry)
    try:
        status = reader.context.client.get_instance_status(entry.vps_instance_id)
    # A provider package's client may raise anything, and what it says of one VPS is not to hide the others.
    except Exception as error:  # noqa: BLE001
        if isinstance(error, VpsApiError) and error.is_gone:
            return (
                ObservedHost(entry)
                if entry.may_still_appear(reader.context.timings.appearing_seconds)
                else _gone(reader, entry)
            )
        return ObservedHost(entry, problem=_not_told(error))
    if status is VpsInstanceStatus.DESTROYING:
        return _gone(reader, entry)
    return ObservedHost(reader.save(entry, lambda entry: replace(entry, gone_since=None)))


def _check_that_any_is_told(context: ProviderContext, observed_hosts: Sequence[ObservedHost]) -> None:
    """Raise ProviderUnavailableError if the cloud, which cannot list, has told nothing of any host."""
    problems = [observed.problem for observed in observed_hosts]
    if problems and all(problems):
        raise ProviderUnavailableError(context.provider_name, str(problems[0])) from problems[0]


def _not_told(error: Exception) -> VpsDockerError:
    return VpsDockerError(f"the cloud does not say whether its VPS exists: {describe_error(error)}")


def _gone(reader: VpsReader, entry: LocalHostRecord) -> ObservedHost:
    """A host without a VPS. The cloud may be wrong, so its keys are kept, and gc counts from the first such answer.

    A host that was never finished does not count as gone while its key may still be at the cloud.
    """
    if entry.phase is not HostPhase.READY and entry.ssh_key_name is not None:
        return ObservedHost(entry)
    since = entry.gone_since or datetime.now(UTC)
    return ObservedHost(reader.save(entry, lambda entry: replace(entry, gone_since=since)), is_gone=True)


def _of_unknown(host_id: HostId, instances: Sequence[VpsInstanceInfo], key: UploadedKey | None) -> list[ObservedHost]:
    """What the cloud alone tells of a host that another machine made, or is making as long as its key is there."""
    return [
        ObservedHost(
            LocalHostRecord(
                host_id=host_id,
                host_name=instance.tags.get(HOST_NAME_TAG) or host_id,
                phase=HostPhase.READY if key is None else HostPhase.CREATING,
                created_at=instance.created_at,
                ssh_key_name=None if key is None else key.name,
                ssh_key_id=None if key is None else key.id,
                vps_instance_id=instance.id,
                vps_ip=instance.address,
            ),
            is_being_made=key is not None and key.may_be_in_use,
            is_saved=False,
        )
        for instance in instances
        if instance.status is not VpsInstanceStatus.DESTROYING
    ]


def _of_unknown_alone(
    context: ProviderContext, host_id: HostId, instances: Sequence[VpsInstanceInfo] | None
) -> list[ObservedHost]:
    key = uploaded_keys(context).get(host_id)
    if not instances:
        return [] if key is None else _of_lone_key(context, host_id, key)
    own = [instance for instance in instances if instance.tags.get(PROVIDER_TAG) == context.provider_name]
    return _of_unknown(host_id, own, key)


def _of_lone_key(context: ProviderContext, host_id: HostId, key: UploadedKey) -> list[ObservedHost]:
    """What is left of a create that another machine ended before it ordered a VPS."""
    # Another provider of the same account may have a VPS that this key is for.
    if key.may_be_in_use or _instances_of(context, host_id) != ():
        return []
    entry = LocalHostRecord(
        host_id=host_id,
        host_name=host_id,
        phase=HostPhase.CREATING,
        created_at=key.created_at,
        ssh_key_name=key.name,
        ssh_key_id=key.id,
    )
    return [ObservedHost(entry, is_saved=False)]


def _of_package_record(found: LocalHostRecord, *, is_listed: bool) -> ObservedHost:
    """A host that only a provider package knows of.

    What it found comes from the VPS, and must not name the instance that is to be destroyed, nor its address, unless
    the client cannot list instances.
    """
    if is_listed:
        found = replace(found, vps_instance_id=None, vps_ip=None)
    return ObservedHost(found, is_saved=False)


def _with_package_record(observed: ObservedHost, found: LocalHostRecord | None, *, is_listed: bool) -> ObservedHost:
    """The same host with what a provider package found of it and this machine does not know better."""
    entry = observed.entry
    if found is None or observed.is_gone or observed.is_being_made or entry.phase is not HostPhase.READY:
        return observed
    if entry.record is None:
        entry = replace(entry, record=found.record, agents=found.agents)
    if not is_listed and found.vps_ip is not None:
        entry = replace(entry, vps_ip=found.vps_ip)
    return replace(observed, entry=entry)


def _observe(
    reader: VpsReader, observed: ObservedHost, seen: ObservedHost | None, read: Read, *, is_listed: bool
) -> ObservedHost:
    """Ask the VPS of a host, unless it was just ``seen`` there; and again where the cloud says that it is by now."""
    is_seen = seen is not None and seen.entry.vps_ip == observed.entry.vps_ip
    if seen is not None and is_seen and observed.entry.phase is HostPhase.READY and not observed.is_gone:
        found = replace(
            seen,
            entry=replace(observed.entry, unreachable=seen.entry.unreachable),
            problem=seen.problem if seen.is_read else seen.problem or observed.problem,
            is_gone=False,
            is_being_made=observed.is_being_made,
            is_saved=observed.is_saved,
            is_abandoned=False,
            late_answer=None,
        )
    else:
        found = reader.observe(observed, read)
    if is_listed or found.is_read or not isinstance(found.problem, VpsConnectionError):
        return found
    address = _address_by_id(reader.context, observed.entry)
    if address is None or address == observed.entry.vps_ip:
        return found
    return reader.observe(replace(found, entry=replace(found.entry, vps_ip=address)), read)


def _address_by_id(context: ProviderContext, entry: LocalHostRecord) -> str | None:
    if entry.vps_instance_id is None:
        return None
    try:
        return context.client.get_instance_ip(entry.vps_instance_id)
    # A provider package's client may raise anything; the address that is known stays then.
    except Exception as error:  # noqa: BLE001
        logger.debug("The cloud does not say where {} is: {}", entry.host_name, describe_error(error))
        return None


def _settled(reader: VpsReader, observed_hosts: Sequence[ObservedHost]) -> dict[HostId, ObservedHost]:
    """Each host once, by the name that it can have next to the others."""
    by_host: dict[HostId, list[ObservedHost]] = {}
    for observed in observed_hosts:
        by_host.setdefault(observed.host_id, []).append(observed)
    settled = {host_id: _best(several) for host_id, several in by_host.items()}
    names = {observed.name for observed in settled.values() if not observed.is_gone}
    for host_id, observed in settled.items():
        settled[host_id] = _finished(reader, observed, names)
        names.add(settled[host_id].name)
    return settled


def _best(observed_hosts: Sequence[ObservedHost]) -> ObservedHost:
    """Of several VPSes that may be a host's own, the one that has its record."""
    return max(observed_hosts, key=lambda observed: observed.vps_record is not None)


def _finished(reader: VpsReader, observed: ObservedHost, names: Collection[str]) -> ObservedHost:
    observed = reader.accept_reported_name(observed, names)
    observed = reader.unless_destroyed(reader.unless_abandoned(observed))
    if observed.problem is not None and not observed.is_read and observed.entry.phase is HostPhase.READY:
        logger.warning("Showing last known state of host {}: {}", observed.name, observed.problem_text)
    return observed
