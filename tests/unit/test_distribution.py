"""Fetching Kafka: one folder per user, whole or not at all, and a clear error when it cannot be had."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from safekafka.testing import KafkaNotAvailableError, distribution
from safekafka.testing.distribution import COORDINATES, cache_folder, find_distribution


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAFEKAFKA_CACHE_DIR", str(folder))
    monkeypatch.delenv("SAFEKAFKA_KAFKA_HOME", raising=False)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request of jgo goes to a port where nobody listens."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")


def jar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("A.class", path.name)
    return path


def fetched(repository: Path) -> list[Path]:
    return [jar(repository / name) for name in ("kafka.jar", "slf4j.jar")]


@pytest.mark.usefixtures("no_network")
def test_without_network_and_cache_the_error_says_what_is_missing_and_names_both_remedies(cache: Path) -> None:
    with pytest.raises(KafkaNotAvailableError) as caught:
        find_distribution()
    message = str(caught.value)
    assert COORDINATES in message
    assert "Apache Kafka 4.3.1 could not be fetched" in message
    assert str(cache) in message
    assert "SAFEKAFKA_BOOTSTRAP=host:port" in message
    assert "SAFEKAFKA_KAFKA_HOME=/path/to/kafka" in message
    assert [path.name for path in cache.iterdir()] == ["kafka-4.3.1.lock"]


@pytest.mark.usefixtures("no_network")
def test_what_is_cached_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as online:
        online.setattr(distribution, "_download", fetched)
        first = find_distribution()
    assert find_distribution() == first
    assert [Path(entry).name for entry in first.class_path.split(":")] == ["kafka.jar", "slf4j.jar"]


def test_a_fetch_that_is_cut_off_leaves_nothing_that_looks_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(repository: Path) -> list[Path]:
        fetched(repository)
        raise KeyboardInterrupt

    monkeypatch.setattr(distribution, "_download", cut_off)
    with pytest.raises(KeyboardInterrupt):
        find_distribution()
    assert [path.name for path in cache.iterdir()] == ["kafka-4.3.1.lock"]


def test_leftovers_of_a_killed_fetch_are_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar(cache / "kafka-4.3.1.partial" / "stale.jar")
    monkeypatch.setattr(distribution, "_download", fetched)
    assert "stale" not in find_distribution().class_path
    assert not (cache / "kafka-4.3.1.partial").exists()


def test_a_damaged_jar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(repository: Path) -> list[Path]:
        jars = fetched(repository)
        jars[1].write_bytes(jars[1].read_bytes()[:-30])
        return jars

    monkeypatch.setattr(distribution, "_download", damaged)
    with pytest.raises(KafkaNotAvailableError, match="BadZipFile"):
        find_distribution()


@pytest.mark.parametrize("damage", ["jar missing", "jar cut short", "manifest missing", "other coordinates"])
def test_a_damaged_cache_is_fetched_anew(cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_download", fetched)
    whole = find_distribution()
    folder = cache / "kafka-4.3.1"
    manifest = folder / "manifest.json"
    if damage == "jar missing":
        (folder / "kafka.jar").unlink()
    elif damage == "jar cut short":
        (folder / "kafka.jar").write_bytes(b"PK")
    elif damage == "manifest missing":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "coordinates": "a:b:1"}))
    assert find_distribution() == whole
    assert zipfile.is_zipfile(folder / "kafka.jar")


def test_a_process_that_waited_for_another_one_s_fetch_uses_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_download", fetched)
    find_distribution()

    def again(repository: Path) -> list[Path]:
        raise AssertionError("fetched twice")

    monkeypatch.setattr(distribution, "_download", again)
    distribution._fetch(cache / "kafka-4.3.1")


def test_an_unpacked_kafka_is_used_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar(tmp_path / "kafka" / "libs" / "kafka_2.13-4.3.1.jar")
    monkeypatch.setenv("SAFEKAFKA_KAFKA_HOME", str(tmp_path / "kafka"))
    found = find_distribution()
    assert found.class_path == f"{tmp_path}/kafka/libs/*"
    assert found.java.is_file()


def test_a_folder_that_is_no_unpacked_kafka_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEKAFKA_KAFKA_HOME", str(tmp_path))
    with pytest.raises(KafkaNotAvailableError, match=r"SAFEKAFKA_KAFKA_HOME=.*libs/kafka_\*\.jar"):
        find_distribution()


def test_the_cache_is_one_folder_per_user(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("SAFEKAFKA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "safekafka"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "safekafka"
