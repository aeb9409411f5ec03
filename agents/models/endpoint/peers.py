"""Whether the other end of a loopback connection is still held by a process that has only ended its side.

A client that has said all may shut its sending side down and read on (``nc -N``). What arrives here is the same as of one
that has gone; but both ends of a loopback connection stand in this machine's table, and an end that a process holds has an
inode there.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Final

TABLE: Final = Path("/proc/net/tcp")
_CLOSE_WAIT: Final = "08"


def reads_on(sock: socket.socket, table: Path = TABLE) -> bool:
    """True where only the other end has ended its side, and a process still holds it; False where the system does not tell."""
    try:
        theirs, ours = _shown(sock.getpeername()), _shown(sock.getsockname())
        lines = table.read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    held = waiting = False
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[1:3] == [theirs, ours]:
            held = fields[9] != "0"
        elif len(fields) > 9 and fields[1:3] == [ours, theirs]:
            waiting = fields[3] == _CLOSE_WAIT  # we have not ended ours
    return held and waiting


def _shown(address: tuple[str, int]) -> str:
    """An IPv4 address as the table has it: the four bytes as this machine's number, in hex."""
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"
