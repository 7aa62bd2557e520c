"""The Python part of the store: discovery, references, names, waiting, and the content of spill files."""
