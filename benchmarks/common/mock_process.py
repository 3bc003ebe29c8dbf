"""Mock brokers in a process of their own, so that the processor time of a sender is the client's alone.

Run as a program it starts them, prints their addresses, makes a topic for each line `NAME PARTITIONS` that it reads,
and ends with its standard input: so they end with whoever started them, whatever way that goes.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

from benchmarks.common.setup import PARTITIONS

_TOPIC = "bench"


class MockProcess:
    topic = _TOPIC
    servers: str

    def __enter__(self) -> MockProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.common.mock_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.servers = self._process.stdout.readline().strip()
        if not self.servers:
            self._end()
            raise RuntimeError("the mock brokers did not start: see above")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def create_topic(self, name: str, partitions: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, partitions, file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():
            raise RuntimeError(f"the mock brokers ended, or refused the topic {name}: see above")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    from safekafka.testing import MockCluster

    with MockCluster(brokers=3) as cluster:
        cluster.create_topic(_TOPIC, PARTITIONS, 3)
        print(cluster.bootstrap_servers, flush=True)
        for line in sys.stdin:
            name, partitions = line.split()
            cluster.create_topic(name, int(partitions), 3)
            print(name, flush=True)


if __name__ == "__main__":
    main()
