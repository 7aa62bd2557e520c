"""Run the command line: ``python -m pyray_ser`` is the same as ``pyray-ser``."""

import sys

from .cli import main

sys.exit(main())
