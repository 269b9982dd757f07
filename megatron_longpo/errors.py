"""The exceptions the package raises for something its user can fix."""


class UserError(ValueError):
    """Bad input, option or file: the message says what was seen, what is needed and what to change.

    The commands print it as one line and exit with status 2; any other exception is our own defect and keeps
    its traceback. For data the message starts with ``file:line:``.
    """


def one_line(error: Exception) -> str:
    """What another library's exception says, for a message of ours: its type and at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].removesuffix(": ")


class TooLong(UserError):
    """A pair or a request over the limit in tokens: whoever made it may leave it out."""
