"""The consumer benchmark: SafeConsumer beside the clients that would be used instead. Run by `make bench-consumer`.

The way of a run: `__main__` reads the options; `throughput`, `sleeping`, `idle` and `memory` plan the rounds, fill
topics (`topics`) and start a fresh process (`worker`) for each contestant of each round; every result is a line of a
journal; `requirements`, `report` and `chart` read nothing but the journal.
"""
