"""The errors that are told to a user.

DarkroomError            a sentence for the user: what was wrong and what to do; HTTP 400
├── Invalid              a value in a form, a body or a spec; HTTP 422
├── NotFound             no such dataset, model, batch, job or image; HTTP 404
├── Conflict             it exists already, or it is in a state that does not allow this; HTTP 409
└── Unavailable          Redis or storage cannot be reached; HTTP 503
    └── Unwritable       the storage is there and refuses, as when its disk is full
Cancelled                raised inside a unit of work whose job was cancelled; never shown

Anything else that escapes is a bug and is logged with its traceback.
"""


class DarkroomError(Exception):
    """Its message is a sentence for the user. `status` is the HTTP status it becomes."""

    status = 400


class Invalid(DarkroomError):
    """A value the user gave is not acceptable. `field` names the field of the form or spec, where there is one."""

    status = 422

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFound(DarkroomError):
    """The thing named in a URL or a spec does not exist."""

    status = 404


class Conflict(DarkroomError):
    """The thing exists already, or is in a state that does not allow what was asked."""

    status = 409


class Unavailable(DarkroomError):
    """Redis or storage cannot be reached at the moment."""

    status = 503


class Unwritable(Unavailable):
    """The storage refuses to be written: waiting does not heal it, a person must."""


class Cancelled(Exception):
    """The job was cancelled; work stops between two mini-batches."""
