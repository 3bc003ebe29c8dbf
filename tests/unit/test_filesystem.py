"""Where a spool may be: told from the kernel's list of mounts, written by hand and by a real kernel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekafka.errors import SpoolUnusableError
from safekafka.spool import filesystem
from safekafka.spool.filesystem import CONTAINER_LAYER, MEMORY, NETWORK, file_system_of, look

ROOT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"
DURABILITIES: tuple[Literal["disk", "process"], ...] = ("disk", "process")


def mounts(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def kind_of(path: str, *lines: str) -> str:
    return file_system_of(PurePosixPath(path), mounts(*lines))


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for /proc/self/mountinfo. A type written into it is that of every folder."""
    told = tmp_path / "mountinfo"
    monkeypatch.setattr(filesystem, "_MOUNTS", told)
    return told


def everything_on(told: Path, kind: str) -> None:
    told.write_text(mounts(f"27 1 0:30 / / rw - {kind} source rw"))


# ---- which file system


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount_above_it() -> None:
    lines = (
        ROOT,
        "30 27 8:1 / /data rw shared:5 - xfs /dev/sda1 rw",
        "31 30 0:40 / /data/team rw master:1 propagate_from:2 - nfs4 server:/team rw",
    )
    assert kind_of("/", *lines) == "ext4"
    assert kind_of("/data", *lines) == kind_of("/data/spool/a", *lines) == "xfs"
    assert kind_of("/data/team", *lines) == kind_of("/data/team/spool", *lines) == "nfs4"


def test_a_root_that_is_its_own_parent_is_a_root() -> None:
    assert kind_of("/data/spool", "1 1 0:1 / / rw - rootfs rootfs rw") == "rootfs"


def test_a_name_that_begins_like_a_mount_point_is_not_below_it() -> None:
    assert kind_of("/database/spool", ROOT, "30 27 0:40 / /data rw - nfs4 server:/ rw") == "ext4"


def test_of_two_mounts_on_the_same_point_the_last_counts() -> None:
    side_by_side = ("30 27 0:40 / /data rw - nfs4 server:/ rw", "31 27 8:1 / /data rw - xfs /dev/sda1 rw")
    assert kind_of("/data/spool", ROOT, *side_by_side) == "xfs"
    assert kind_of("/data/spool", ROOT, *reversed(side_by_side)) == "nfs4"
    stacked = ("30 27 0:40 / /data rw - nfs4 server:/ rw", "31 30 8:1 / /data rw - xfs /dev/sda1 rw")
    assert kind_of("/data/spool", ROOT, *stacked) == "xfs"


def test_a_mount_that_a_later_one_above_it_hides_does_not_count() -> None:
    hidden = "30 27 0:40 / /data/team rw - nfs4 server:/team rw"
    assert kind_of("/data/team/spool", ROOT, hidden, "31 27 8:1 / /data rw - xfs /dev/sda1 rw") == "xfs"


def test_a_root_that_was_moved_to_its_place_hides_nothing_that_was_moved_with_it() -> None:
    shm = "25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k"
    assert kind_of("/dev/shm/spool", "24 27 0:6 / /dev rw - devtmpfs devtmpfs rw", shm, ROOT) == "tmpfs"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"/my\040data", "/my data"),
        (r"/a\011b\012c", "/a\tb\nc"),
        (r"/back\134slash", "/back\\slash"),
        (r"/back\134040", "/back\\040"),
        (r"/a\040-\040b", "/a - b"),
        (r"/\043tag", "/#tag"),
    ],
)
def test_escapes_in_mount_points_are_undone(written: str, meant: str) -> None:
    assert kind_of(f"{meant}/spool", ROOT, f"30 27 0:40 / {written} rw - nfs4 server:/ rw") == "nfs4"


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1).filter(lambda name: name not in (".", "..")))
def test_every_name_that_a_folder_can_have_is_found(name: str) -> None:
    written = "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\#" else letter for letter in name)  # as Linux does it
    assert kind_of(f"/{name}/spool", ROOT, f"30 27 0:40 / /{written} rw - nfs4 server:/ rw") == "nfs4"


@st.composite
def mounted(draw: st.DrawFn) -> tuple[list[str], list[PurePosixPath]]:
    """The lines of some mounts in any order, and their points in the order in which they were mounted."""
    names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
    points = [PurePosixPath("/"), *(PurePosixPath("/", *parts) for parts in draw(st.lists(names, max_size=8)))]
    lines = []
    for number, point in enumerate(points):
        under = max((n for n in range(number) if point.is_relative_to(points[n])), default=-1)
        lines.append(f"{number + 10} {under + 10} 0:1 / {point} rw - fs{number} source rw")
    return draw(st.permutations(lines)), points


@given(mounted(), st.lists(st.sampled_from("abc"), max_size=4))
def test_a_folder_is_on_what_was_mounted_last_at_or_above_it(
    some: tuple[list[str], list[PurePosixPath]], parts: list[str]
) -> None:
    lines, points = some
    folder = PurePosixPath("/", *parts)
    last = max(number for number, point in enumerate(points) if folder.is_relative_to(point))
    assert file_system_of(folder, mounts(*lines)) == f"fs{last}"


@given(st.text(st.characters() | st.sampled_from("0123 /-\n\\")))
def test_a_list_of_mounts_that_is_not_understood_tells_nothing_and_raises_nothing(text: str) -> None:
    assert isinstance(file_system_of(PurePosixPath("/data/spool"), text), str)
    assert kind_of("/data/spool") == ""


def test_mounts_that_lie_on_each_other_in_a_circle_end_the_search() -> None:
    circle = ("27 1 0:1 / / rw - ext4 a rw", "28 27 0:1 / /data rw - xfs b rw", "27 28 0:1 / /data rw - btrfs c rw")
    assert kind_of("/data/spool", *circle) == "btrfs"
    assert kind_of("/data/spool", "28 29 0:1 / / rw - xfs b rw", "29 28 0:1 / / rw - btrfs c rw") == ""


# ---- what is said of it


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("kind", sorted(NETWORK))
def test_a_network_file_system_is_refused_with_the_remedy(
    on: Path, tmp_path: Path, kind: str, durability: Literal["disk", "process"]
) -> None:
    everything_on(on, kind)
    with pytest.raises(SpoolUnusableError) as refused:
        look(tmp_path / "spool", durability)
    assert str(tmp_path / "spool") in str(refused.value)
    assert f"({kind})" in str(refused.value)
    assert "Remedy: give a folder on a local disk" in str(refused.value)


@pytest.mark.parametrize("kind", sorted(MEMORY))
def test_memory_is_refused_where_records_must_survive_power_loss(on: Path, tmp_path: Path, kind: str) -> None:
    everything_on(on, kind)
    with pytest.raises(SpoolUnusableError) as refused:
        look(tmp_path / "spool", "disk")
    assert str(tmp_path / "spool") in str(refused.value)
    assert f"({kind})" in str(refused.value)
    assert "Remedy: give a folder on a disk, or choose Spool(durability='process')" in str(refused.value)


@pytest.mark.parametrize("kind", sorted(MEMORY))
def test_memory_is_fine_where_records_must_survive_the_process_alone(on: Path, tmp_path: Path, kind: str) -> None:
    everything_on(on, kind)
    assert look(tmp_path / "spool", "process") is None


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("kind", sorted(CONTAINER_LAYER))
def test_a_container_without_a_volume_is_warned_about(
    on: Path, tmp_path: Path, kind: str, durability: Literal["disk", "process"]
) -> None:
    everything_on(on, kind)
    warning = look(tmp_path / "spool", durability)
    assert warning is not None
    assert str(tmp_path / "spool") in warning
    assert f"({kind})" in warning
    assert "Remedy: give a folder on a volume" in warning


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "fuse", "fuseblk", "virtiofs", "unheard-of"])
def test_a_disk_and_what_is_not_known_are_fine(
    on: Path, tmp_path: Path, kind: str, durability: Literal["disk", "process"]
) -> None:
    everything_on(on, kind)
    assert look(tmp_path / "spool", durability) is None


def test_where_nothing_tells_the_mounts_every_folder_is_fine(on: Path, tmp_path: Path) -> None:
    assert not on.exists()
    assert look(tmp_path / "spool", "disk") is None


def test_a_link_is_followed_though_its_target_does_not_exist_yet(on: Path, tmp_path: Path) -> None:
    real = tmp_path.resolve()
    on.write_text(mounts(ROOT, f"30 27 0:40 / {real}/far rw - nfs4 server:/ rw"))
    (tmp_path / "spool").symlink_to(tmp_path / "far" / "spool")
    with pytest.raises(SpoolUnusableError, match="nfs4"):
        look(tmp_path / "spool" / "deeper", "disk")


def test_a_relative_folder_is_looked_at_from_where_the_program_is(
    on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far").mkdir()
    on.write_text(mounts(ROOT, f"30 27 0:40 / {tmp_path.resolve()}/far rw - nfs4 server:/ rw"))
    monkeypatch.chdir(tmp_path / "far")
    with pytest.raises(SpoolUnusableError, match=r"spool 'spool' is on .*nfs4"):
        look(Path("spool"), "disk")


def test_a_name_that_is_not_utf_8_is_no_obstacle(on: Path, tmp_path: Path) -> None:
    on.write_bytes(mounts(ROOT).encode() + b"30 27 0:40 / /caf\xe9 rw - nfs4 server:/ rw\n")
    with pytest.raises(SpoolUnusableError, match="nfs4"):
        look(Path("/caf\udce9/spool"), "disk")


# ---- by a real kernel, in a namespace of our own

SAY = """
import sys
from pathlib import Path
from safekafka.errors import SpoolUnusableError
from safekafka.spool.filesystem import look
try:
    print(look(Path(sys.argv[1]), sys.argv[2]))
except SpoolUnusableError as error:
    print("refused:", error)
"""


def said_after(script: str, spool: Path, durability: str, *, cwd: Path) -> str:
    """What `look` says in a namespace in which the script has mounted something."""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-euc", f'{script}\nexec "$@"', "sh", sys.executable, "-c", SAY, spool, durability],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In which namespaces can be mounted into."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1) here: no real file system can be mounted")
    tried = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, text=True, timeout=60
    )
    if tried.returncode:
        pytest.skip(f"mounting in a user namespace is not permitted here: {tried.stderr.strip()}")
    return tmp_path


def test_a_real_tmpfs_is_refused_for_disk_and_fine_for_process(folder: Path) -> None:
    for spool in (folder, folder / "not" / "yet"):
        refused = said_after("mount -t tmpfs none .", spool, "disk", cwd=folder)
        assert refused.startswith(f"refused: spool '{spool}' is in memory (tmpfs)")
        assert said_after("mount -t tmpfs none .", spool, "process", cwd=folder) == "None"


def test_a_real_mount_that_is_hidden_by_another_is_not_what_the_spool_is_on(folder: Path) -> None:
    (folder / "data" / "team").mkdir(parents=True)
    spool = folder / "data" / "team" / "spool"
    assert "(tmpfs)" in said_after("mount -t tmpfs none data/team", spool, "disk", cwd=folder)
    hidden = "mount -t tmpfs none data/team; mount -t ramfs none data"
    assert "(ramfs)" in said_after(hidden, spool, "disk", cwd=folder)


def test_a_real_overlay_is_warned_about(folder: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    overlay = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged"
    script = f"error=$({overlay} 2>&1) || {{ echo not mounted: $error; exit; }}"
    spool = folder / "merged" / "spool"
    said = said_after(script, spool, "disk", cwd=folder)
    if said.startswith("not mounted"):
        pytest.skip(f"an overlay in a user namespace is not permitted here: {said}")
    assert said.startswith(f"spool '{spool}' is in the container itself (overlay)")
