"""The exceptions the package raises for something its user can fix, and what such messages are made of."""

import importlib
from typing import Any


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


def import_optional(module: str, purpose: str, *, extra: str | None = None, advice: str = "") -> Any:
    """Import a package that not every installation has.

    Args:
        purpose: how the message begins: what needs the package.
        extra: the extra of this package that brings it.
        advice: what else to do; behind what there is to install, if ``extra`` is given.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"install it: pip install 'megatron-longpo[{extra}]'" if extra else ""
        raise UserError(f"{purpose} ({error}); {install}{advice}") from error
