"""What kind of file system a spool is on, looked at once, before a record is accepted: refused where SQLite's
write-ahead log does not work or the promised durability can't be kept, warned about where a container's end takes the
records with it.

On Linux `/proc/self/mountinfo` tells (proc_pid_mountinfo(5)); elsewhere nothing does, and every folder is accepted. So
is a type that is not named here, plain `fuse` and `fuseblk` (ntfs) among them: better a spool on an unknown file system
than a service that does not start.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from safekafka.errors import SpoolUnusableError

# The write-ahead log needs memory that all its users share (https://sqlite.org/wal.html), and the lane a lock that all
# of them see. Between machines there is no such memory, and often no such lock; two could write one journal. Many of
# these also tell a sync done before it is.
NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "davfs"),
        *("afs", "auristorfs", "beegfs", "ceph", "coda", "fhgfs", "glusterfs", "gpfs", "lustre", "panfs", "pvfs2"),
        *("quobyte", "wekafs"),
        *("fuse.sshfs", "fuse.davfs", "fuse.davfs2", "fuse.curlftpfs", "fuse.rclone", "fuse.smbnetfs"),
        *("fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs", "fuse.quobyte"),
        *("fuse.s3fs", "fuse.goofys", "fuse.gcsfuse", "fuse.blobfuse", "fuse.blobfuse2"),
        # folders that a virtual machine shares with its host
        *("vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "prl_fs", "fuse.grpcfuse", "fuse.osxfs"),
    }
)

# A sync does nothing there: records survive the process, but no power loss.
MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "rootfs"})

# What a container writes outside of its volumes; removed with it, and with every new version of the service.
CONTAINER_LAYER = frozenset({"overlay", "overlayfs", "aufs", "fuse.fuse-overlayfs"})

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def look(folder: Path, durability: Literal["disk", "process"]) -> str | None:
    """None if all is well, else a warning for a person. The folder need not exist yet.

    Raises `SpoolUnusableError` where records could be lost that `durability` promises to keep."""
    real = Path(os.path.realpath(folder))  # before the mounts are read: to touch it may mount it (autofs)
    try:
        mounts = os.fsdecode(_MOUNTS.read_bytes())
    except OSError:
        return None
    kind = file_system_of(real, mounts)
    if kind in NETWORK:
        raise SpoolUnusableError(
            f"spool {str(folder)!r} is on a network file system ({kind}): SQLite's write-ahead log, which holds the "
            "records, can be damaged there. Remedy: give a folder on a local disk."
        )
    if kind in MEMORY and durability == "disk":
        raise SpoolUnusableError(
            f"spool {str(folder)!r} is in memory ({kind}): its records would not survive a power loss, which "
            "durability='disk' promises. Remedy: give a folder on a disk, or choose Spool(durability='process')."
        )
    if kind in CONTAINER_LAYER:
        return (
            f"spool {str(folder)!r} is in the container itself ({kind}): its records are lost when the container is "
            "removed. Remedy: give a folder on a volume."
        )
    return None


def mode_of(path: Path) -> int | None:
    """`st_mode`; None if nothing is there. Raises `OSError` where that can't be told, for lack of rights, say: from
    Python 3.14 on `Path.exists()` and its like call that "not there"."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Mount(NamedTuple):
    id: str
    parent: str
    point: str
    kind: str


def file_system_of(path: PurePath, mountinfo_text: str) -> str:
    """The type of the file system that the path (absolute, resolved) is on, or would be; empty if nothing tells.

    Goes from mount to mount, from the root down, as the kernel does. To take the longest mount point is not enough: a
    later mount above it may hide it, and the order of the lines is not that of the mounts.
    """
    mounts = [mount for line in mountinfo_text.split("\n") if (mount := _mount(line)) is not None]
    ids = {mount.id for mount in mounts}
    inside: dict[tuple[str | None, str], _Mount] = {}
    for mount in mounts:  # of two in the same place the last
        is_root = mount.parent not in ids or mount.parent == mount.id
        inside[None if is_root else mount.parent, mount.point] = mount
    at, kind = None, ""
    for folder in (*reversed(path.parents), path):
        while (found := inside.pop((at, str(folder)), None)) is not None:  # one may lie on another
            at, kind = found.id, found.kind
    return kind


def _mount(line: str) -> _Mount | None:
    """`<id> <parent> <device> <root> <mount point> <options> <optional fields, any number> - <type> <source> ...`"""
    mount, _, source = line.partition(" - ")
    fields = mount.split(" ")
    if len(fields) < 6 or not source:
        return None
    point = _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
    return _Mount(fields[0], fields[1], point, source.split(" ", 1)[0])
