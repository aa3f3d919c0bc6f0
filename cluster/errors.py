"""Every way a request can fail, drawn once.

    PrismError
    ├── InvalidRequest               400  the client sent something wrong; sending it again cannot help
    │   ├── InvalidJson              400  the body is not a JSON object
    │   ├── InvalidField             400  a field has a value that cannot be used
    │   ├── UnknownField             400  a field that Prism owns and does not know
    │   ├── UnsupportedPart          400  a content part that is neither text nor a picture
    │   ├── EmbeddingRefused         400  a client tried to send embeddings or picture tensors
    │   ├── UuidWithoutPicture       400  a ``uuid`` in place of the picture it should stand beside
    │   ├── UnsupportedScheme        400  a picture URL that is neither data: nor https:
    │   ├── ForbiddenUrl             400  a picture URL that leads where Prism will not go
    │   ├── FetchFailed              400  a picture URL that could not be fetched (a retry may help)
    │   ├── InvalidPicture           400  bytes that do not decode to a picture
    │   ├── TooManyPictures          400  more pictures than one request may carry
    │   ├── ContextTooLong           400  prompt and answer do not fit the model's context
    │   ├── ModelNotFound            404  a model that is not served here
    │   ├── RouteNotFound            404  a path that is not served here
    │   ├── MethodNotAllowed         405  a path that is served, by another method
    │   ├── BodyTooLarge             413  more bytes of request than are read
    │   └── PictureTooLarge          413  a picture with too many bytes or pixels
    └── ServingError                      Prism's fault, or nobody's; a retry can help unless it says otherwise
        ├── Overloaded               429  no room for the request now
        ├── EngineRefused            4xx  vLLM refused the request; its own status and words
        ├── InternalError            500  a defect of Prism's: not worth a retry
        ├── EmbeddingLost            503  an embedding that was gone before the engine came to it
        ├── PoolUnavailable         503  a pool lost the replica that had the request, or has none
        └── DeadlineExceeded         504  the request's time ran out

Each leaf says its HTTP status, its OpenAI ``type`` and ``code``. Errors cross process borders whole: they pickle with
their message and parameters.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, Final, Self


class PrismError(Exception):
    """A request's typed end.

    Args:
        message: One sentence that says what is wrong and what would be right.
        param: The field of the request at fault, as a path: ``messages[0].content[1].image_url.url``.
        **figures: For errors about a limit, the figures: asked for, in use, limit.
    """

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, **figures: int | float) -> None:
        super().__init__(message)
        self.message: Final = message
        self.param = param
        self.figures: Final = figures

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))

    def at(self, param: str) -> Self:
        """The same error for whoever sent the same at another field; an error that is about no field stays so."""
        twin = copy(self)
        twin.param = param if self.param is not None else None
        return twin

    def to_openai(self) -> dict[str, Any]:
        """The error as the OpenAI API's JSON body: ``{"error": {message, type, param, code}}``."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.figures:
            error["figures"] = self.figures
        return {"error": error}


def _rebuild(kind: type[PrismError], message: str, state: dict[str, Any]) -> PrismError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class InvalidRequest(PrismError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class InvalidField(InvalidRequest):
    code = "invalid_value"


class UnknownField(InvalidRequest):
    code = "unknown_field"


class UnsupportedPart(InvalidRequest):
    code = "unsupported_content_part"


class EmbeddingRefused(InvalidRequest):
    code = "embeddings_not_accepted"


class UuidWithoutPicture(InvalidRequest):
    code = "uuid_without_picture"


class UnsupportedScheme(InvalidRequest):
    code = "unsupported_url_scheme"


class ForbiddenUrl(InvalidRequest):
    code = "image_url_forbidden"


class FetchFailed(InvalidRequest):
    code = "image_fetch_failed"


class InvalidPicture(InvalidRequest):
    code = "invalid_image"


class TooManyPictures(InvalidRequest):
    code = "too_many_images"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class ModelNotFound(InvalidRequest):
    status = 404
    code = "model_not_found"


class RouteNotFound(InvalidRequest):
    status = 404
    code = "route_not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class PictureTooLarge(InvalidRequest):
    status = 413
    code = "image_too_large"


class ServingError(PrismError):
    status = 503


class Overloaded(ServingError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class EngineRefused(ServingError):
    """vLLM's own refusal, in its words.

    Args:
        message: vLLM's sentence.
        param: The field that vLLM names, if any.
        status: vLLM's HTTP status.
    """

    type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, param=param)
        self.status = status


class InternalError(ServingError):
    status = 500


class EmbeddingLost(ServingError):
    code = "embedding_lost"


class PoolUnavailable(ServingError):
    status = 503
    code = "stage_unavailable"


class DeadlineExceeded(ServingError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
