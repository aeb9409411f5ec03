"""``rigbus bridge take``: the shared folder is this rig's, by a person's word."""

from __future__ import annotations

from typing import Any, Final

from ...bus.errors import NotFound, Refused
from ...bus.paths import RigPaths
from ...bus.store.store import state_id
from .gleaning import Gleaner
from .owner import Claim
from .port import FolderPort

#: Not a bridge's: that of this rig takes the folder from it when it comes, or at its next look.
BRIDGE: Final = "taken by a person"


def take_over(paths: RigPaths) -> dict[str, Any] | None:
    """Write this rig into the folder's record; the record that stood there, None where there was none.

    Raises:
        NotFound: there is no such rig.  Refused: the folder cannot be written.
    """
    if not paths.state.is_dir():
        raise NotFound(f"{paths.state}: no such state folder; name the right one with --state DIR")
    with FolderPort(paths.shared) as port:
        before = Gleaner(port).owner()
        mine = state_id(paths.state)
        if before is not None and before["rig"] == mine:
            return before
        port.claim = Claim(mine, BRIDGE, {"state": str(paths.state), "any": True}, force=True)
        reply = port.call("mirror", [])
        after = Gleaner(port).owner() if reply.fault is None else None
    if reply.fault is not None or after is None or after["rig"] != mine:
        why = reply.fault.what if reply.fault is not None else "the record cannot be written"
        raise Refused(f"{paths.shared}: {why}; mount the shared folder writable, then try again")
    return before
