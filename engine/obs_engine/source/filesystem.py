"""How a file is best read, by the filesystem that it is on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

_UNWISE_TO_MAP = frozenset(
    "9p afs beegfs ceph cifs coda fuse fuseblk gfs2 gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2 smb3 smbfs vboxsf "
    "virtiofs".split()
)
"""Filesystems whose bytes come from elsewhere: a host that is lost, or that cuts the file, is an error of `read` and a
signal, or an endless wait, of a page that is touched. (`fuseblk` and `fuse.*`: their server may die.)"""


def choose_reader(device: int, mounts: str = "/proc/self/mountinfo") -> Literal["mmap", "pread"]:
    """ "pread" where mapping a file is unwise, else "mmap"; also where the system does not tell.

    Args:
        device: of the file, as in `st_dev`.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            kind = filesystem_of(device, lines)
    except OSError:
        kind = None
    is_unwise = kind is not None and (kind in _UNWISE_TO_MAP or kind.startswith("fuse."))
    return "pread" if is_unwise else "mmap"


def filesystem_of(device: int, mounts: Iterable[str]) -> str | None:
    """The kind of filesystem that a device holds, from the lines of mountinfo; None where they do not say.

    Source: proc_pid_mountinfo(5): "... major:minor root mount-point options [fields] - type source options".
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) > 2 and kinds and fields[2] == wanted:
            return kinds[0]
    return None
