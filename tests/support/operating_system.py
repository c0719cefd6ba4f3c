"""The operating systems of VPSes that end-to-end tests run on."""

import os

from imbue.mngr_local_vps.operating_systems import DEFAULT_OS, find_operating_system

# `make test OS=…` runs every test on one, instead of those marked `core` on two and the others on the default.
_ASKED_FOR = os.environ.get("MNGR_TEST_OS")
CHOSEN_OS = find_operating_system(_ASKED_FOR or DEFAULT_OS).os_id
CORE_SYSTEMS = (CHOSEN_OS,) if _ASKED_FOR else (DEFAULT_OS, "debian-13")
