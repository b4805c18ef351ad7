"""What can be wrong, told apart: all are ValueErrors, and a command prints their message in one line."""

import errno


class Refused(ValueError):
    """An option, or a combination of inputs, that cannot be used; the message names the value, the limit and the cure."""


class Damaged(ValueError):
    """A file that is cut short, changed or not what its name says; the message names the file and the cure."""


class Busy(ValueError):
    """Another process is writing the same store or run; the message says which one."""


def in_words(error: ValueError | OSError) -> str:
    """The error without its number; of one that the system raised, also the file and a cure where there is one."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "; free some space, then run the same command again" if full else ""
    return f"{error.filename}: {error.strerror}{cure}"
