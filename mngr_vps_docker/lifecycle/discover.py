"""Finding hosts: what the cloud lists, what each VPS says, and what this machine remembers, joined into one picture.

Nothing is concluded from silence. A VPS that cannot be read keeps its host in the picture, as last seen and with the
reason; only the cloud's own word that an instance does not exist makes a host count as gone.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import UTC
from datetime import datetime
from typing import Any

from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker import lifecycle as operations
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.ahead import AskedAhead
from imbue.mngr_vps_docker.lifecycle.ahead import answer_in_time
from imbue.mngr_vps_docker.lifecycle.ahead import looking_at_each
from imbue.mngr_vps_docker.lifecycle.context import HOST_ID_TAG
from imbue.mngr_vps_docker.lifecycle.context import HOST_NAME_TAG
from imbue.mngr_vps_docker.lifecycle.context import PROVIDER_TAG
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.observe import MAX_PARALLEL_READINGS
from imbue.mngr_vps_docker.lifecycle.observe import ask
from imbue.mngr_vps_docker.lifecycle.observe import attended
from imbue.mngr_vps_docker.lifecycle.observe import named
from imbue.mngr_vps_docker.lifecycle.observe import noted
from imbue.mngr_vps_docker.lifecycle.observe import observe
from imbue.mngr_vps_docker.lifecycle.observe import unless_destroyed
from imbue.mngr_vps_docker.lifecycle.patience import Patience
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.lifecycle.steps import describe_error
from imbue.mngr_vps_docker.lifecycle.uploaded_keys import UploadedKey
from imbue.mngr_vps_docker.lifecycle.uploaded_keys import take_left_keys_back
from imbue.mngr_vps_docker.lifecycle.uploaded_keys import uploaded_keys
from imbue.mngr_vps_docker.primitives import VpsInstanceStatus
from imbue.mngr_vps_docker.terminal import logger
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo
from imbue.mngr_vps_docker.vps_state import VpsState


@dataclass(frozen=True, slots=True)
class Findings:
    """What a provider package found by its own means: records of hosts, and data of their agents."""

    records: Mapping[HostId, VpsDockerHostRecord] = field(default_factory=dict)
    agents: Mapping[HostId, Sequence[dict[str, Any]]] = field(default_factory=dict)


def discover(
    context: ProviderContext,
    findings: Findings,
    just_seen: Mapping[HostId, HostSighting],
    *,
    is_silent_awaited: bool = True,
) -> dict[HostId, HostSighting]:
    """Find every host of the provider, by id.

    The VPSes of ``just_seen`` hosts are asked again only if the cloud says that they are at another address. A VPS
    that was silent when it was last asked is waited for briefly, or with ``is_silent_awaited=False`` no longer than
    the others take: its host is as last seen then, with its late answer. Raises ProviderUnavailableError if the cloud
    cannot be asked.
    """
    with _readers() as pool:
        asked_for_keys = pool.submit(uploaded_keys, context)
        ahead = AskedAhead(
            context,
            (
                HostSighting(entry)
                for entry in context.journal.read_all()
                if entry.gone_since is None and entry.host_id not in just_seen
            ),
        )
        with asking_the_cloud(context):
            instances = context.client.find_instances({PROVIDER_TAG: context.provider_name})
        keys = asked_for_keys.result()
        by_host = _by_host(instances or ())
        # In this order: a host that another process makes meanwhile is not taken for one of another machine.
        entries = {entry.host_id: entry for entry in context.journal.read_all()}
        take_left_keys_back(context, entries.values())
        unreadable = {entry.host_id: entry for entry in context.journal.stand_ins()}

        def sightings_of_noted(entry: JournalEntry) -> list[HostSighting]:
            return _sightings_of_noted(context, entry, by_host.get(entry.host_id, ()))

        sightings = [sighting for found in pool.map(sightings_of_noted, entries.values()) for sighting in found]
        if instances is None and not findings.records:
            _check_that_any_is_told(context, sightings)
        for host_id in by_host.keys() - entries.keys():
            sightings += _sightings_of_unknown(host_id, by_host[host_id], keys.get(host_id))
        known = entries.keys() | by_host.keys()
        sightings += [
            HostSighting(entry, is_noted=False) for host_id, entry in unreadable.items() if host_id not in known
        ]
        known |= unreadable.keys()
        is_listed = instances is not None
        sightings = [
            *(_with_findings(sighting, findings, is_listed=is_listed) for sighting in sightings),
            *(
                _sighting_of_record(record, findings, is_listed=is_listed)
                for host_id, record in findings.records.items()
                if host_id not in known
            ),
        ]
        for host_id in keys.keys() - known - findings.records.keys() if is_listed else ():
            sightings += _sightings_of_lone_key(context, host_id, keys[host_id])

        def look(sighting: HostSighting) -> HostSighting:
            return _look(context, sighting, just_seen.get(sighting.host_id), is_listed=is_listed, ask=ahead.answer)

        # Whoever has yet to log in does not wait for those that have not.
        # While they answer: what their hosts are shown by takes a tenth of a second and more to import.
        with looking_at_each(look, sorted(sightings, key=ahead.has)) as looking:
            operations.load("views", "details")
            # Those that may be silent come last.
            seen = {
                id(sighting): answer_in_time(context, sighting, task, is_silent_awaited=is_silent_awaited)
                for sighting, task in sorted(looking, key=lambda each: each[0].entry.is_silent)
            }
        return _settled(context, [seen[id(sighting)] for sighting in sightings])


def look_at(context: ProviderContext, host_id: HostId, patience: Patience | None = None) -> HostSighting | None:
    """One host as it is now, asked for alone; None if neither this machine nor the cloud has anything of it.

    The cloud is asked only if the VPS does not answer where it was last; if neither does, the host is as last seen.
    The VPS is waited for with ``patience``, or as long as a listing waits.
    """

    def asked(context: ProviderContext, sighting: HostSighting) -> VpsState:
        return ask(context, sighting, patience)

    entry = context.journal.read(host_id)
    seen = None
    if entry is not None and entry.phase is HostPhase.READY and entry.vps_ip is not None and entry.gone_since is None:
        seen = observe(context, HostSighting(entry), asked)
    if seen is None or seen.reading is None:
        instances = _instances_of(context, host_id)
        if entry is not None:
            sightings = _sightings_of_noted(context, entry, instances or ())
        else:
            sightings = _sightings_of_unknown_alone(context, host_id, instances)
        if not sightings:
            return None
        is_listed = instances is not None
        seen = _best([_look(context, sighting, seen, is_listed=is_listed, ask=asked) for sighting in sightings])
    return finished(context, seen)


def finished(context: ProviderContext, sighting: HostSighting) -> HostSighting:
    """A host that was seen alone, by the name that it can have."""
    return _finished(context, sighting, {entry.host_name for entry in context.journal.read_all()})


@contextmanager
def asking_the_cloud(context: ProviderContext) -> Iterator[None]:
    """Have whatever is raised by a provider package's code, where the cloud does not answer, be no empty listing."""
    try:
        yield
    except Exception as error:
        raise ProviderUnavailableError(context.provider_name, describe_error(error)) from error


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    """Threads for what takes long. Whoever is interrupted does not wait for those who have not begun."""
    pool = ThreadPoolExecutor(MAX_PARALLEL_READINGS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_host(instances: Iterable[VpsInstanceInfo]) -> dict[HostId, list[VpsInstanceInfo]]:
    """The instances of each host. Those that are being destroyed count only where there is no other."""
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


def _sightings_of_noted(
    context: ProviderContext, entry: JournalEntry, instances: Sequence[VpsInstanceInfo]
) -> list[HostSighting]:
    """A host that this machine has a note of, once for each VPS that may be its own; none if it was just destroyed."""
    if entry.phase is not HostPhase.READY:
        if context.journal.has_live_owner(entry.host_id):
            return [HostSighting(entry, is_being_made=True)]
        # Whoever made it has ended, but perhaps after the note was read: it may be finished, or destroyed, by now.
        current = context.journal.read(entry.host_id)
        if current is None:
            return []
        entry = current
    own = [instance for instance in instances if instance.id == entry.vps_instance_id] or instances
    if not own:
        return [_sighting_of_unlisted(context, entry)]
    if own[0].status is VpsInstanceStatus.DESTROYING:
        return [_gone(context, entry)]
    if len(own) > 1:
        # Which is noted once its record is read.
        return [HostSighting(entry.model_copy(update=_where(one, entry))) for one in own]
    return [HostSighting(noted(context, entry, gone_since=None, **_where(own[0], entry)))]


def _where(instance: VpsInstanceInfo, entry: JournalEntry) -> dict[str, Any]:
    """Id and address of a host's VPS. The cloud knows the address best: some give a machine a new one."""
    return {"vps_instance_id": instance.id, "vps_ip": instance.address or entry.vps_ip}


def _sighting_of_unlisted(context: ProviderContext, entry: JournalEntry) -> HostSighting:
    """A host that this machine remembers and the cloud did not list; listings lag, so the cloud is asked by id."""
    if entry.vps_instance_id is None:
        return HostSighting(entry)
    try:
        status = context.client.get_instance_status(entry.vps_instance_id)
    # A provider package's client may raise anything, and what it says of one VPS is not to hide the others.
    except Exception as error:  # noqa: BLE001
        if isinstance(error, VpsApiError) and error.is_gone:
            return HostSighting(entry) if entry.may_still_appear else _gone(context, entry)
        return HostSighting(entry, problem=_not_told(error))
    if status is VpsInstanceStatus.DESTROYING:
        return _gone(context, entry)
    return HostSighting(noted(context, entry, gone_since=None))


def _check_that_any_is_told(context: ProviderContext, sightings: Sequence[HostSighting]) -> None:
    """Raise ProviderUnavailableError if the cloud, which cannot list, has told nothing of any host."""
    problems = [sighting.problem for sighting in sightings]
    if problems and all(problems):
        raise ProviderUnavailableError(context.provider_name, str(problems[0])) from problems[0]


def _not_told(error: Exception) -> VpsDockerError:
    return VpsDockerError(f"the cloud does not say whether its VPS exists: {describe_error(error)}")


def _gone(context: ProviderContext, entry: JournalEntry) -> HostSighting:
    """A host without a VPS. The cloud may be wrong, so its keys are kept, and gc counts from the first such answer.

    What was never finished is no such host: its key may still be at the cloud, and is shown as what it is left of.
    """
    if entry.phase is not HostPhase.READY and entry.ssh_key_name is not None:
        return HostSighting(entry)
    since = entry.gone_since or datetime.now(UTC)
    return HostSighting(noted(context, entry, gone_since=since), is_gone=True)


def _sightings_of_unknown(
    host_id: HostId, instances: Sequence[VpsInstanceInfo], key: UploadedKey | None
) -> list[HostSighting]:
    """What the cloud alone tells of a host that another machine made, or is making as long as its key is there."""
    return [
        HostSighting(
            JournalEntry(
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
            is_noted=False,
        )
        for instance in instances
        if instance.status is not VpsInstanceStatus.DESTROYING
    ]


def _sightings_of_unknown_alone(
    context: ProviderContext, host_id: HostId, instances: Sequence[VpsInstanceInfo] | None
) -> list[HostSighting]:
    key = uploaded_keys(context).get(host_id)
    if not instances:
        return [] if key is None else _sightings_of_lone_key(context, host_id, key)
    own = [instance for instance in instances if instance.tags.get(PROVIDER_TAG) == context.provider_name]
    return _sightings_of_unknown(host_id, own, key)


def _sightings_of_lone_key(context: ProviderContext, host_id: HostId, key: UploadedKey) -> list[HostSighting]:
    """What is left of a create that another machine ended before it ordered a VPS."""
    # Another provider of the same account may have a VPS that this key is for.
    if key.may_be_in_use or _instances_of(context, host_id) != ():
        return []
    entry = JournalEntry(
        host_id=host_id,
        host_name=host_id,
        phase=HostPhase.CREATING,
        created_at=key.created_at,
        ssh_key_name=key.name,
        ssh_key_id=key.id,
    )
    return [HostSighting(entry, is_noted=False)]


def _sighting_of_record(record: VpsDockerHostRecord, findings: Findings, *, is_listed: bool) -> HostSighting:
    """A host that only a provider package knows of.

    Its record comes from the VPS, and must not name the instance that is to be destroyed; it does where the client
    cannot list, for then there is nobody else to name it.
    """
    data, config = record.certified_host_data, None if is_listed else record.config
    entry = JournalEntry(
        host_id=record.host_id,
        host_name=record.host_id,
        phase=HostPhase.READY,
        created_at=data.created_at,
        vps_instance_id=None if config is None else config.vps_instance_id,
    )
    return _with_findings(HostSighting(entry, is_noted=False), findings, is_listed=is_listed)


def _with_findings(sighting: HostSighting, findings: Findings, *, is_listed: bool) -> HostSighting:
    """The same host with what a provider package found of it and this machine does not know better."""
    entry, record = sighting.entry, findings.records.get(sighting.host_id)
    if record is None or sighting.is_gone or sighting.is_being_made or entry.phase is not HostPhase.READY:
        return sighting
    found: dict[str, object] = {}
    if entry.record is None:
        found |= {"record": record, "agents": tuple(findings.agents.get(sighting.host_id, ()))}
    if not is_listed and record.vps_ip is not None:
        found["vps_ip"] = record.vps_ip
    return replace(sighting, entry=entry.model_copy(update=found))


def _look(
    context: ProviderContext,
    sighting: HostSighting,
    seen: HostSighting | None,
    *,
    is_listed: bool,
    ask: Callable[[ProviderContext, HostSighting], VpsState] = ask,
) -> HostSighting:
    """Ask the VPS of a host, unless it was just ``seen`` there; and again where the cloud says that it is by now."""
    is_seen = seen is not None and seen.entry.vps_ip == sighting.entry.vps_ip
    if seen is not None and is_seen and sighting.entry.phase is HostPhase.READY and not sighting.is_gone:
        problem = seen.problem if seen.reading is not None else seen.problem or sighting.problem
        entry = sighting.entry.model_copy(update={"unreachable": seen.entry.unreachable})
        looked = replace(sighting, entry=entry, reading=seen.reading, problem=problem)
    else:
        looked = observe(context, sighting, ask)
    if is_listed or looked.reading is not None or not isinstance(looked.problem, VpsConnectionError):
        return looked
    address = _address_by_id(context, sighting.entry)
    if address is None or address == sighting.entry.vps_ip:
        return looked
    moved = replace(looked, entry=looked.entry.model_copy(update={"vps_ip": address}))
    return observe(context, moved, ask)


def _address_by_id(context: ProviderContext, entry: JournalEntry) -> str | None:
    if entry.vps_instance_id is None:
        return None
    try:
        return context.client.get_instance_ip(entry.vps_instance_id)
    # A provider package's client may raise anything; the address that is known stays then.
    except Exception as error:  # noqa: BLE001
        logger.debug("The cloud does not say where {} is: {}", entry.host_name, describe_error(error))
        return None


def _settled(context: ProviderContext, sightings: Sequence[HostSighting]) -> dict[HostId, HostSighting]:
    """Each host once, by the name that it can have beside the others."""
    by_host: dict[HostId, list[HostSighting]] = {}
    for sighting in sightings:
        by_host.setdefault(sighting.host_id, []).append(sighting)
    settled = {host_id: _best(several) for host_id, several in by_host.items()}
    names = {sighting.name for sighting in settled.values() if not sighting.is_gone}
    for host_id, sighting in settled.items():
        settled[host_id] = _finished(context, sighting, names)
        names.add(settled[host_id].name)
    return settled


def _best(sightings: Sequence[HostSighting]) -> HostSighting:
    """Of several VPSes that may be a host's own, the one that has its record."""
    return max(sightings, key=lambda sighting: sighting.reading is not None and sighting.reading.record is not None)


def _finished(context: ProviderContext, sighting: HostSighting, names: Collection[str]) -> HostSighting:
    sighting = unless_destroyed(context, attended(context, named(context, sighting, names)))
    if sighting.problem is not None and sighting.reading is None and sighting.entry.phase is HostPhase.READY:
        logger.warning("Host {} is shown as last seen: {}", sighting.name, sighting.problem_text)
    return sighting
