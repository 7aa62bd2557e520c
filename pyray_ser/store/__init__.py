"""The Python side of the store: finding one, references, names, waiting, and what is written to spill files."""
