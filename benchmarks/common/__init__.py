"""What the benchmarks have in common: the frame of a run, workers, brokers, journal, statistics, tables and charts."""
