"""`safekafka demo`: orders go through a real cluster while a broker and the producer are killed; then it is counted.

- `place_orders.py`, `handle_orders.py`: the two programs, as an application would write them. Processes of their own.
- `book.py`: what they write down, so that it is there after a SIGKILL.
- `faults.py`: what is killed when. `clusters.py`: the brokers, real or mock.
- `run.py`: starts, hurts and ends all of it. `screen.py`: what is seen meanwhile.
- `ledger.py`: the count at the end, from the topics themselves.
"""
