"""The one error that bad input raises."""

# What a JSON text raises that is damaged, or of something else than what is read from it.
MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class UserError(ValueError):
    """Bad input, reported in one sentence that names the file, field or value and the way out.

    The command line prints the sentence and exits with 1; anything else that escapes is a bug.
    """


def one_line(text: str) -> str:
    """Text that may come from a foreign file, fit for one line of a terminal or a list.

    Args:
        text: a sentence, with names and values from anywhere in it.

    Returns:
        The text with what cannot be printed escaped (line ends, terminal codes), and with the middle left out where it
        is longer than about 1500 characters.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > _LONGEST:
        return f"{text[: _LONGEST - _END]} ... {text[-_END:]}"
    return text


# The way out stands at a sentence's end, so that is kept.
_LONGEST, _END = 1500, 500


class UnreadableImageError(UserError):
    """An image that cannot be decoded; callers that read many images count it and go on."""
