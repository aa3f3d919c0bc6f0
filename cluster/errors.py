"""Every way a request can fail, drawn once.

    PrismError
    ├── InvalidRequest               400  the client must change the request; the same request fails again
    │   ├── InvalidJson              400  the body is not a JSON object
    │   ├── InvalidField             400  a field has a value that cannot be used
    │   ├── UnknownField             400  a field that clients may not set, or that Prism does not know
    │   ├── UnsupportedPart          400  a content part that is neither text nor a picture
    │   ├── EmbeddingRefused         400  a client tried to send embeddings or picture tensors
    │   ├── UuidWithoutPicture       400  a ``uuid`` without the picture that belongs to it
    │   ├── UnsupportedScheme        400  a picture URL that is neither data: nor https:
    │   ├── ForbiddenUrl             400  a picture URL that leads to an address Prism does not fetch from
    │   ├── FetchFailed              400  a picture URL where no picture can be fetched
    │   ├── InvalidPicture           400  bytes that do not decode to a picture
    │   ├── PictureTooExpensive      400  a picture that takes too much CPU time or memory to decode
    │   ├── TooManyPictures          400  more pictures than one request may carry
    │   ├── ContextTooLong           400  prompt and answer do not fit the model's context
    │   ├── EngineRefused            4xx  vLLM refused the request, with its own status and message
    │   ├── InvalidKey               401  no API key, or one that is not valid
    │   ├── ModelNotAllowed          403  a model that the API key may not use
    │   ├── OperatorsOnly            403  a path that the API key may not read
    │   ├── ModelNotFound            404  a model that is not served here
    │   ├── RouteNotFound            404  a path that is not served here
    │   ├── MethodNotAllowed         405  a path that is served with another HTTP method
    │   ├── BodyTooSlow              408  a body that arrived too slowly; a retry can help
    │   ├── BodyTooLarge             413  a body with more bytes than are read
    │   └── PictureTooLarge          413  a picture with too many bytes or pixels
    └── ServingError                      the request is fine; Prism could not serve it now
        ├── Overloaded               429  no free slot or bytes for the request; a retry can help
        ├── RateLimited              429  the API key has used up one of its limits; a retry can help
        ├── InternalError            500  a defect of Prism's
        ├── PictureUnavailable       502  a picture's server, or its name, does not answer now; a retry can help
        ├── EmbeddingLost            503  an embedding was gone before the engine read it; a retry can help
        ├── PictureLost              503  a stream cannot go on: its picture is held nowhere any more; a retry can help
        ├── ContinuationNotExact     503  a stream cannot go on: the rest might not fit its beginning; a retry can help
        ├── PoolUnavailable          503  a pool has no replica that can serve, or lost the one in use; a retry can help
        ├── ControllerUnavailable    503  Serve's controller does not tell the states of the pools; a retry can help
        └── DeadlineExceeded         504  the request's time ran out

Each leaf gives its HTTP ``status``, its OpenAI ``type`` and ``code``, and ``can_retry``: whether the same request can
succeed later. The HTTP surface sends ``Retry-After`` exactly where ``can_retry`` is true. Errors cross process borders
whole: they pickle with their message and parameters.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any, ClassVar, Final, Self


class PrismError(Exception):
    """The base of all errors that a client can receive.

    Args:
        message: One sentence that says what is wrong and what would be right.
        param: The field of the request at fault, as a path such as ``messages[0].content[1].image_url.url``. It is None
            for an error that is about no field, and never names anything but a field or a header of the request.
        **figures: Numbers of an error about a limit: what was asked for, what is in use, and the limit.
    """

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    can_retry: ClassVar[bool] = False
    """Whether the same request can succeed when it is sent again later."""

    def __init__(self, message: str, *, param: str | None = None, **figures: int | float) -> None:
        super().__init__(message)
        self.message: Final = message
        self.param = param
        self.figures: Final = figures
        self.retry_after_s = 1
        """The seconds for ``Retry-After``, if a retry can help."""
        self.replica: str | None = None
        """The pool and the replica that failed or refused, as ``pool/replica``, for the log; None if it was the Router
        itself."""
        self.cause: str | None = None
        """The origin of the error, for the log: the name of another library's exception, or a few words."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))

    def because(self, cause: BaseException | str | None) -> Self:
        """Sets ``cause``, of an exception its class name, and returns the error itself."""
        self.cause = type(cause).__name__ if isinstance(cause, BaseException) else cause
        return self

    def at(self, param: str) -> Self:
        """A copy of the error that names another field. An error that is about no field keeps ``param=None``."""
        twin = copy(self)
        twin.param = param if self.param is not None else None
        return twin

    def to_openai(self, request_id: str = "") -> dict[str, Any]:
        """The error as the OpenAI API's JSON body: ``{"error": {message, type, param, code, request_id}}``.

        Args:
            request_id: The name by which the request is found in the logs. The body lacks it if it is empty.
        """
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if request_id:
            error["request_id"] = request_id
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
    can_retry = False


class InvalidField(InvalidRequest):
    code = "invalid_value"
    can_retry = False


class UnknownField(InvalidRequest):
    code = "unknown_field"
    can_retry = False


class UnsupportedPart(InvalidRequest):
    code = "unsupported_content_part"
    can_retry = False


class EmbeddingRefused(InvalidRequest):
    code = "embeddings_not_accepted"
    can_retry = False


class UuidWithoutPicture(InvalidRequest):
    code = "uuid_without_picture"
    can_retry = False


class UnsupportedScheme(InvalidRequest):
    code = "unsupported_url_scheme"
    can_retry = False


class ForbiddenUrl(InvalidRequest):
    code = "image_url_forbidden"
    can_retry = False


class FetchFailed(InvalidRequest):
    code = "image_fetch_failed"
    can_retry = False


class InvalidPicture(InvalidRequest):
    code = "invalid_image"
    can_retry = False


class PictureTooExpensive(InvalidRequest):
    code = "image_too_expensive"
    can_retry = False


class TooManyPictures(InvalidRequest):
    code = "too_many_images"
    can_retry = False


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"
    can_retry = False


class EngineRefused(InvalidRequest):
    """vLLM refused the request.

    Args:
        message: vLLM's own sentence.
        param: The field that vLLM names, if any.
        status: vLLM's HTTP status.
    """

    code = "invalid_request"
    can_retry = False

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, param=param)
        self.status = status


class InvalidKey(InvalidRequest):
    status = 401
    code = "invalid_api_key"
    can_retry = False


class ModelNotAllowed(InvalidRequest):
    status = 403
    code = "model_not_allowed"
    can_retry = False


class OperatorsOnly(InvalidRequest):
    status = 403
    code = "operators_only"
    can_retry = False


class ModelNotFound(InvalidRequest):
    status = 404
    code = "model_not_found"
    can_retry = False


class RouteNotFound(InvalidRequest):
    status = 404
    code = "route_not_found"
    can_retry = False


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"
    can_retry = False


class BodyTooSlow(InvalidRequest):
    status = 408
    code = "body_too_slow"
    can_retry = True


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"
    can_retry = False


class PictureTooLarge(InvalidRequest):
    status = 413
    code = "image_too_large"
    can_retry = False


class ServingError(PrismError):
    status = 503


class Overloaded(ServingError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    can_retry = True


class RateLimited(ServingError):
    """The API key has used up one of its limits.

    Args:
        message: One sentence about the limit.
        wait_s: The seconds until the key can serve the request, if it serves no other before.
        **options: See ``PrismError``.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    can_retry = True

    def __init__(self, message: str, *, wait_s: float = 1.0, **options: Any) -> None:
        super().__init__(message, **options)
        self.retry_after_s = max(1, math.ceil(wait_s))


class InternalError(ServingError):
    status = 500
    can_retry = False


class PictureUnavailable(ServingError):
    """The server of a picture cannot be reached now, or is busy.

    The status is 502, because OpenAI's SDKs try again after 408, 409, 429 and everything from 500. The first three
    would say something else: that the client is slow, that requests collide, or that Prism is full. 502 says that a
    server behind Prism failed. No other error has it, so alerts on Prism's own errors can leave it out.
    """

    status = 502
    code = "image_unavailable"
    can_retry = True


class EmbeddingLost(ServingError):
    code = "embedding_lost"
    can_retry = True


class PictureLost(ServingError):
    code = "continuation_lost_picture"
    can_retry = True


class ContinuationNotExact(ServingError):
    code = "continuation_not_exact"
    can_retry = True


class PoolUnavailable(ServingError):
    """A pool has no replica that can serve, or lost the one in use.

    Args:
        message: One sentence about what happened.
        pool: The pool whose replica failed, if the call reached one.
        **options: See ``PrismError``.
    """

    status = 503
    code = "stage_unavailable"
    can_retry = True

    def __init__(self, message: str, *, pool: str | None = None, **options: Any) -> None:
        super().__init__(message, **options)
        self.pool: Final = pool


class ControllerUnavailable(ServingError):
    status = 503
    code = "controller_unavailable"
    can_retry = True


class DeadlineExceeded(ServingError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    can_retry = False
