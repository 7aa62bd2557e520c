"""What every benchmark here is made of: timing, verdicts, references to compare with, the machine."""
