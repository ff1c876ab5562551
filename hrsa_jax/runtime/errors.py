"""What ends a run that is not our fault: input that a user can correct, and SIGTERM."""

_LONGEST = 1500  # characters of a message; a longer one quotes a whole file


class InputError(ValueError):
    """Bad input: the message is one sentence that says what was found, where, and what to do.

    `launch.py` prints it without a traceback and exits with status 2. What it quotes of a file cannot steer the
    terminal: a message is one line of printable characters, shortened in its middle where it is very long.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


class Interrupted(Exception):
    """SIGTERM arrived while it trained: the checkpoint is written and the same command continues."""


def _one_line(message: str) -> str:
    if len(message) > _LONGEST:
        half = _LONGEST // 2
        message = f"{message[:half]} [...] {message[-half:]}"
    if message.isprintable():
        return message
    words = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
