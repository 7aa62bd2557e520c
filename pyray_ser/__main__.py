"""``python -m pyray_ser`` is ``pyray-ser``."""

import sys

from .cli import main

sys.exit(main())
