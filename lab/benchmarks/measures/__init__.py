"""One measure a file. Each module has `NAME` and `measure(bench) -> list[Figure]`."""
