"""How the simulated cloud says no: return code and sentence (qingcloud-api.md section 5).

The sentence has the documented form, "Name, text with resource ids in [brackets]". Only the names PermissionDenied,
ResourceNotFound and ServerBusy have been seen from the real cloud; the other names and all texts are our own.
"""

MALFORMED = 1100
BAD_VALUE = 1101
UNAUTHENTICATED = 1200
EXPIRED = 1300
DENIED = 1400
NOT_FOUND = 2100
QUOTA = 2500


class Refusal(Exception):
    """The call is answered with *ret_code* and *message*, and has changed nothing."""

    def __init__(self, ret_code: int, message: str) -> None:
        super().__init__(f"{ret_code}: {message}")
        self.ret_code = ret_code
        self.message = message


def missing(name: str) -> Refusal:
    return Refusal(MALFORMED, f"InvalidRequestFormat, parameter [{name}] is missing")


def malformed(name: str, value: str, wish: str) -> Refusal:
    return Refusal(MALFORMED, f"InvalidRequestFormat, parameter [{name}] is [{value}], not {wish}")


def bad_value(name: str, value: object, wish: str) -> Refusal:
    return Refusal(BAD_VALUE, f"InvalidParameterValue, parameter [{name}] is [{value}], allowed: {wish}")


def not_found(resource_id: str) -> Refusal:
    return Refusal(NOT_FOUND, f"ResourceNotFound, resource [{resource_id}] does not exist")


def unknown_key(access_key_id: str) -> Refusal:
    return Refusal(UNAUTHENTICATED, f"AuthFailure, access key [{access_key_id}] does not exist")


def expired(time_stamp: str) -> Refusal:
    return Refusal(EXPIRED, f"RequestHasExpired, time_stamp [{time_stamp}] is too old")


def denied(text: str) -> Refusal:
    return Refusal(DENIED, f"PermissionDenied, {text}")


def quota(text: str) -> Refusal:
    return Refusal(QUOTA, f"QuotaExceeded, {text}")
