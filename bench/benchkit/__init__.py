"""What the benchmarks share: statistics, load, servers under test, result files."""
