"""The producer benchmark: SafeProducer beside the clients that would be used instead. Run by `make bench-producer`.

The way of a run: `__main__` reads the options; `throughput`, `latency` and `memory` plan the rounds and start a fresh
process (`worker`) for each contestant of each round; every result is a line of a journal; `report` and `chart` read
nothing but the journal.
"""
