"""A process that saw a host before another one destroyed it."""

from collections.abc import Callable

import pytest

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.primitives import AgentId, HostId, HostName
from support.memory_provider import MemoryProvider
from support.provider import states
from support.world import CASES, World


@pytest.mark.parametrize(
    "act",
    [
        lambda process, host_id: process.start_host(host_id),
        lambda process, host_id: process.stop_host(host_id),
        lambda process, host_id: process.create_snapshot(host_id),
        lambda process, host_id: process.add_tags_to_host(host_id, {"a": "b"}),
        lambda process, host_id: process.rename_host(host_id, HostName("h2")),
    ],
    ids=["start", "stop", "snapshot", "tag", "rename"],
)
def test_changing_a_destroyed_host_says_that_it_is_gone(
    world: World, act: Callable[[MemoryProvider, HostId], object]
) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    process = world.process()
    assert host_id in states(process)
    world.process().destroy_host(host_id)
    with pytest.raises(HostNotFoundError):
        act(process, host_id)
    process.remove_persisted_agent_data(host_id, AgentId.generate())
    assert list(process.context.keys.hosts_folder.glob("host-*")) == []
