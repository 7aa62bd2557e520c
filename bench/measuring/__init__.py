"""Common parts of all benchmarks: timing, verdicts, reference copies, the machine."""
