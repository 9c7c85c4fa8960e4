"""Errors of the simulated API: return code and message (docs/reference/qingcloud-api.md, "Return codes").

A message has the documented form, "Name, text with resource ids in [brackets]". The real cloud is known to use the
names PermissionDenied, ResourceNotFound and ServerBusy; the other names and all texts are invented.
"""

MALFORMED = 1100
BAD_VALUE = 1101
UNAUTHENTICATED = 1200
EXPIRED = 1300
DENIED = 1400
NOT_FOUND = 2100
QUOTA = 2500


class ApiError(Exception):
    """The call gets *ret_code* and *message*, and has changed nothing."""

    def __init__(self, ret_code: int, message: str) -> None:
        super().__init__(f"{ret_code}: {message}")
        self.ret_code = ret_code
        self.message = message


def missing(name: str) -> ApiError:
    return ApiError(MALFORMED, f"InvalidRequestFormat, parameter [{name}] is missing")


def malformed(name: str, value: str, expected: str) -> ApiError:
    return ApiError(MALFORMED, f"InvalidRequestFormat, parameter [{name}] is [{value}], not {expected}")


def bad_value(name: str, value: object, allowed: str) -> ApiError:
    return ApiError(BAD_VALUE, f"InvalidParameterValue, parameter [{name}] is [{value}], allowed: {allowed}")


def not_found(resource_id: str) -> ApiError:
    return ApiError(NOT_FOUND, f"ResourceNotFound, resource [{resource_id}] does not exist")


def unknown_key(access_key_id: str) -> ApiError:
    return ApiError(UNAUTHENTICATED, f"AuthFailure, access key [{access_key_id}] does not exist")


def expired(time_stamp: str) -> ApiError:
    return ApiError(EXPIRED, f"RequestHasExpired, time_stamp [{time_stamp}] is too old")


def denied(text: str) -> ApiError:
    return ApiError(DENIED, f"PermissionDenied, {text}")


def quota(text: str) -> ApiError:
    return ApiError(QUOTA, f"QuotaExceeded, {text}")
