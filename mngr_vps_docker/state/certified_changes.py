"""What somebody changed in a copy of a host's certified data, done to the data as it is now.

mngr reads the whole of it, changes a field and sets the whole. Two of those at once must not undo each other.
"""

import json
from collections.abc import Callable
from typing import Final

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr_vps_docker.primitives import replace

type CertifiedDataChange = Callable[[CertifiedHostData], CertifiedHostData]

# Fields that mngr uses as sets, adding and removing one of their members, and keeps sorted.
_SETS: Final = ("generated_work_dirs", "generated_source_dirs")


def change_between(before: CertifiedHostData, after: CertifiedHostData) -> CertifiedDataChange:
    """The change that made ``after`` of ``before``: by field, by member of a set, by plugin."""

    def change(current: CertifiedHostData) -> CertifiedHostData:
        changed = {
            name: getattr(after, name)
            for name in CertifiedHostData.model_fields
            if getattr(after, name) != getattr(before, name)
        }
        for name in changed.keys() & set(_SETS):
            old, new = set(getattr(before, name)), set(getattr(after, name))
            changed[name] = tuple(sorted((set(getattr(current, name)) - (old - new)) | (new - old)))
        if "plugin" in changed:
            removed = before.plugin.keys() - after.plugin.keys()
            kept = {name: data for name, data in current.plugin.items() if name not in removed}
            changed["plugin"] = kept | {
                name: data for name, data in after.plugin.items() if data != before.plugin.get(name)
            }
        return replace(current, **changed)

    return change


def certified_data_json(data: CertifiedHostData) -> str:
    """The content of data.json as mngr writes it."""
    return json.dumps(data.model_dump(by_alias=True, mode="json"), indent=2)
