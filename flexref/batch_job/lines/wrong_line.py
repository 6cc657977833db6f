"""What can be wrong with a line of a job, as an error that becomes the line's answer; it knows no format."""

from flexref.errors import FlexrefError


class WrongLine(FlexrefError):
    """A line that cannot be served: why in words, a code for programs, and the field that is to blame, if one is."""

    def __init__(self, words: str, code: str, field: str | None = None) -> None:
        super().__init__(words)
        self.code, self.field = code, field


INVALID_LINE = "invalid_line"
"""It is no JSON object, no UTF-8, or too long."""

MISSING_FIELD = "missing_field"

UNKNOWN_FIELD = "unknown_field"

UNSUPPORTED_FIELD = "unsupported_field"
"""A field that other engines know, with a value that is not served here."""

INVALID_VALUE = "invalid_value"

DUPLICATE_CUSTOM_ID = "duplicate_custom_id"

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"

NO_CHAT_TEMPLATE = "no_chat_template"

NO_TOKENIZER = "no_tokenizer"

CANNOT_BE_SERVED = "cannot_be_served"
"""The engine refuses one of its rows: it has not the memory that the row needs."""

CODES = (
    INVALID_LINE,
    MISSING_FIELD,
    UNKNOWN_FIELD,
    UNSUPPORTED_FIELD,
    INVALID_VALUE,
    DUPLICATE_CUSTOM_ID,
    CONTEXT_LENGTH_EXCEEDED,
    NO_CHAT_TEMPLATE,
    NO_TOKENIZER,
    CANNOT_BE_SERVED,
)
"""All codes."""
