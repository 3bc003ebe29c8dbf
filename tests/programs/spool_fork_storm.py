"""Forks while threads append to a spool: `spool_fork_storm.py SERVERS TOPIC SPOOL FORKS`. Prints the number of records
the parent sent. The children's records go to partition 0, the parent's to the others.

Each child makes a spooled producer of its own, sends a record, closes it, and ends by `os._exit` or as a program does.
One that hangs is ended by its own alarm, with the stacks of its threads printed; then this program's exit code is 1.
One that is refused a producer, since it was forked while its parent looked up an address, is replaced by another one,
and counted.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
import threading
import time

from safekafka import SafeKafkaError, SafeProducer

AT_ONCE = 4
RECORDS_PER_PARTITION = 50_000  # a mock broker keeps only the last few megabytes of a partition
HANGS_AFTER = 30
REFUSED = 77


def main(servers: str, topic: str, spool: str, forks: int) -> int:
    producer = SafeProducer({"bootstrap.servers": servers}, spool=spool)
    stop = threading.Event()
    numbers = itertools.count()
    sent = itertools.count()

    def send_for_ever() -> None:
        while not stop.wait(0.002):
            number = next(numbers)
            producer.send(topic, f"parent {number}", partition=1 + number // RECORDS_PER_PARTITION)
            next(sent)

    threads = [threading.Thread(target=send_for_ever) for _ in range(4)]
    for thread in threads:
        thread.start()
    children: dict[int, tuple[int, float]] = {}
    to_do = list(range(forks))
    failed, refused, slowest = 0, 0, 0.0

    def wait_for_one() -> None:
        nonlocal failed, refused, slowest
        pid, status = os.waitpid(-1, 0)
        number, began = children.pop(pid)
        slowest = max(slowest, time.monotonic() - began)
        if os.waitstatus_to_exitcode(status) == REFUSED:
            refused += 1
            to_do.append(number)
        elif status:
            failed += 1
            print(f"child {pid} ended with status {status}", flush=True)

    while to_do or children:
        if not to_do or len(children) >= AT_ONCE:
            wait_for_one()
            continue
        number = to_do.pop(0)
        pid = os.fork()
        if not pid:
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
            try:
                own = SafeProducer({"bootstrap.servers": servers}, spool=spool)
            except SafeKafkaError as error:
                print(error, flush=True)
                os._exit(REFUSED if "look up an address" in str(error) else 1)
            own.send(topic, f"child {number}", partition=0)
            left = own.flush(HANGS_AFTER)
            own.close()
            if left or number % 2:
                os._exit(left)
            sys.exit(0)
        children[pid] = number, time.monotonic()
    stop.set()
    for thread in threads:
        thread.join()
    producer.close()
    print("parent sent", next(sent), flush=True)
    print(f"slowest child {slowest:.1f} s", flush=True)
    print("refused", refused, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
