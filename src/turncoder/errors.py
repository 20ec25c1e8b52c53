"""What went wrong, said to the person who can mend it."""

__all__ = ["ConversionError", "UnfinishedError", "UserError", "first_line"]


class UserError(ValueError):
    """The user's input is wrong: one line that names the flag or key, the value and the remedy.

    The command line prints it as ``error: ...`` without a traceback and exits with code 2.
    """


class UnfinishedError(UserError):
    """A part of what was asked for could not be done; the rest is done and kept."""


class ConversionError(UserError):
    """A model could not be made, or shown to be, fully bidirectional; the message names the layers."""


def first_line(error: Exception) -> str:
    """Return the first line of what a library says went wrong, to be part of a message of ours."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
