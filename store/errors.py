"""What can be wrong, told apart: all are ValueErrors, and a command prints their message in one line."""


class Refused(ValueError):
    """An option, or a combination of inputs, that cannot be used; the message names the value, the limit and the cure."""


class Damaged(ValueError):
    """A file that is cut short, changed or not what its name says; the message names the file and the cure."""


class Busy(ValueError):
    """Another process is writing the same store or run; the message says which one."""
