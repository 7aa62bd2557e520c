"""Common modules of all benchmarks: timing, verdicts, reference copies, facts about the machine."""
