"""Forks while threads send: `fork_under_load.py SERVERS TOPIC FORKS`. Prints the number of records the parent sent. The
children's records go to partition 0, the parent's to the others.

Each child sends one record, waits for it, and ends by `os._exit` or as a program does. One that hangs is ended by its
own alarm, with the stacks of its threads printed; then this program's exit code is 1. One whose `send()` is refused,
since it was forked while its parent looked up an address, is replaced by another one, and counted.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
import threading

from safekafka import SafeKafkaError, SafeProducer

AT_ONCE = 4
RECORDS_PER_PARTITION = 50_000  # a mock broker keeps only the last few megabytes of a partition
HANGS_AFTER = 60
REFUSED = 77


def main(servers: str, topic: str, forks: int) -> int:
    producer = SafeProducer({"bootstrap.servers": servers})
    stop = threading.Event()
    sent = itertools.count()
    lock = threading.Lock()

    def send_for_ever() -> None:
        while not stop.wait(0.0005):
            with lock:
                number = next(sent)
                producer.send(topic, f"parent {number}", partition=1 + number // RECORDS_PER_PARTITION)

    threads = [threading.Thread(target=send_for_ever) for _ in range(3)]
    for thread in threads:
        thread.start()
    children: dict[int, int] = {}
    to_do = list(range(forks))
    failed = refused = 0

    def wait_for_one() -> None:
        nonlocal failed, refused
        pid, status = os.waitpid(-1, 0)
        number = children.pop(pid)
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
                producer.send(topic, f"child {number}", partition=0)
            except SafeKafkaError as error:
                print(error, flush=True)
                os._exit(REFUSED if "look up an address" in str(error) else 1)
            left = producer.flush(HANGS_AFTER)
            if left or number % 2:
                os._exit(left)
            sys.exit(0)
        children[pid] = number
    stop.set()
    for thread in threads:
        thread.join()
    producer.close()
    print("parent sent", next(sent), flush=True)
    print("refused", refused, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
