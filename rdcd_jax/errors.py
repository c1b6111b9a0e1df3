"""The one error that bad input raises."""


class UserError(ValueError):
    """Bad input, told in one sentence that names the file, field or value and the way out.

    The command line prints the sentence and exits with 1; anything else that escapes is a bug.
    """


class UnreadableImageError(UserError):
    """A picture that cannot be decoded; callers that read many pictures count it and go on."""
