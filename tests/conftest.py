"""For all tests: Ctrl-C means what it means on a terminal, also where they run in the background.

A shell starts background jobs with SIGINT ignored, and children inherit that: a demo that is
interrupted by a test would just go on.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
