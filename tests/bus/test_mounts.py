"""Whose writes show late, by the kernel's table of mounts."""

from __future__ import annotations

import pytest

from rigbus.bus.mounts import find_mount, parse_mountinfo

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:35 / /mnt/shared rw - nfs4 pi:/export rw
41 22 0:36 / /mnt/with\\040space rw - fuse.mine pi:/x rw
42 40 0:37 / /mnt/shared/plans rw - cifs //pi/plans rw
43 22 0:38 / /mnt/shared rw - ext4 /dev/sdb rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "point", "id_", "late"),
    [
        ("/home/x", "/", 22, False),
        ("/mnt/shared2", "/", 22, False),
        ("/mnt/shared/inbox", "/mnt/shared", 43, False),
        ("/mnt/shared/plans/x", "/mnt/shared/plans", 42, True),
        ("/mnt/with space", "/mnt/with space", 41, True),
    ],
)
def test_a_mount_is_found_in_the_kernel_s_table(path: str, point: str, id_: int, late: bool) -> None:
    mount = find_mount(parse_mountinfo(MOUNTINFO), path)
    assert mount is not None
    assert (mount.point, mount.id, mount.late) == (point, id_, late)
