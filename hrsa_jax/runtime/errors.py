"""The one exception for input that a user can correct."""


class InputError(ValueError):
    """Bad input: the message is one sentence that says what was found, where, and what to do.

    `launch.py` prints it without a traceback and exits with status 2.
    """
