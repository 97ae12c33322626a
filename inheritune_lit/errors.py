"""The one error type meant for users."""


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, the value seen, and what to do.

    The command line prints it to stderr without a traceback and exits with code 2.
    """
