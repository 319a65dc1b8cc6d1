"""The harness: the only package that touches disk, clock, seeds, processes or tables."""
