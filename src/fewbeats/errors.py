"""The one error a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: it names the file (or option) and says how to mend it.
    The command line prints it without a traceback and exits with code 2.
    """
