"""The spool benchmark: appending beside the disk's own limit, delivery and drain beside the raw client, memory. Run by
`make bench-spool`.

The way of a run: `__main__` reads the options; `append`, `delivery`, `drain` and `outage` plan the rounds and start a
fresh process (`worker`) with a fresh folder for each case of each round; every result is a line of a journal;
`requirements`, `report` and `chart` read nothing but the journal.
"""
