"""Fixtures of all tests of the command line."""

from cli_runs import folder, owner

__all__ = ["folder", "owner"]
