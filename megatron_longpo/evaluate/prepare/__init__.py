"""The mirror: the data of all benchmarks in a folder."""
