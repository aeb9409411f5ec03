"""``rigbus bridge take``: the shared folder is this rig's, by a person's word."""

from __future__ import annotations

from typing import Any, Final

from ....bus.errors import NotFound, Refused
from ....bus.paths import RigPaths
from ....bus.store.store import state_id
from ..share.owner import Claim
from ..share.port import REMEMBERED, FolderPort
from .gleaning import Gleaner

#: Not a bridge's: that of this rig takes the folder from it when it comes, or at its next look.
BRIDGE: Final = "taken by a person"


def take_over(paths: RigPaths) -> dict[str, Any] | None:
    """Write this rig into the folder's record; the record that stood there, None where there was none.

    Raises:
        NotFound: there is no such rig, or no rig ever had this folder: as an empty mount point looks.  Refused: the folder
            is another than this rig's was, or cannot be written.
    """
    if not paths.state.is_dir():
        raise NotFound(f"{paths.state}: no such state folder; name the right one with --state DIR")
    with FolderPort(paths.shared, remember=paths.state / REMEMBERED, make_id=False) as port:
        before = Gleaner(port).owner()
        if before is None and port.folder_id is None:
            raise NotFound(
                f"{paths.shared}: no rig has had this folder yet; mount the shared folder, or name it with --shared DIR "
                "(a new one needs no taking: `rigbus up`)"
            )
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
