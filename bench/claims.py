#!/usr/bin/env python3
"""Measure the figures of all rows and compare each with its limit.

    python bench/claims.py                  all of them, as a table
    python bench/claims.py get-small startup --json figures.json
    python bench/claims.py --list

Each row runs in a separate process. The figure of a row that compares two things is a ratio of interleaved rounds.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring.program import main
from rows import NAMES, measure

if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {name: partial(measure, name) for name in NAMES}))
