"""The one exception that a user's mistake becomes."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and how to mend it. A main program prints it and exits 2."""


class Diverged(Exception):
    """A loss or a weight stopped being a finite number."""
