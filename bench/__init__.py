"""The harness: the only package that touches disk, clock, seeds, processes or tables."""

import sys

if sys.argv[:1] == ["-m"]:  # one of its commands is being started, perhaps by a Python that it was not installed for
    from bench.errors import uncaught

    sys.excepthook = uncaught
