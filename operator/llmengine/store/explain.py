"""Exceptions of boto3, turned into sentences about the object, the key and the way out."""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    TokenRetrievalError,
)

from llmengine.store.errors import (
    AlreadyThereError,
    BucketMissingError,
    CorruptObjectError,
    DamagedUploadError,
    ObjectMissingError,
    StoreDeniedError,
    StoreError,
    StoreRefusedError,
    StoreUnreachableError,
)

# The permission that a method of the client needs, as policies spell it.
_PERMISSIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    NoAuthTokenError,
)
# boto3's own texts repeat the URL, which our sentences have already.
_CAUSES = {
    EndpointConnectionError: "no connection",
    ConnectTimeoutError: "no connection in time",
    ReadTimeoutError: "no answer in time",
    ConnectionClosedError: "the connection was closed",
    ResponseStreamingError: "the answer broke off",
    IncompleteReadError: "the answer broke off",
}
_UNKNOWN_KEY = frozenset({"InvalidAccessKeyId"})
_WRONG_SECRET = frozenset({"SignatureDoesNotMatch"})
_EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_WRONG_CLOCK = frozenset({"RequestTimeTooSkewed"})
_DAMAGED = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
# 412 is the refusal; AWS answers 409 while another conditional write of the key is under way.
_ALREADY_THERE = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
_BUSY = frozenset({"SlowDown", "RequestTimeout"})
_SHOWN_OF_KEY = 4


@dataclass(frozen=True)
class Attempted:
    """What was asked of a store.

    `operation` is the client's method, `target` the object's or bucket's URL, `address` the
    service, `access_key` the id of the key that signed, empty when there was none.
    """

    operation: str
    target: str
    address: str
    access_key: str

    @property
    def permission(self) -> str:
        return _PERMISSIONS.get(self.operation, "s3:PutObject")

    @property
    def signer(self) -> str:
        if not self.access_key:
            return "a request without an access key"
        return f"access key {self.access_key[:_SHOWN_OF_KEY]}..."


def explain(error: Exception, attempted: Attempted) -> StoreError:
    """The error to raise instead."""
    if isinstance(error, ClientError):
        return _explain_answer(_Answer.of(error), attempted)
    if isinstance(error, _NO_CREDENTIALS):
        return StoreDeniedError(
            f"there are no credentials for {attempted.target} ({_first_line(error)}): name a"
            " Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service"
            " account a workload identity"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreUnreachableError(
            f"the certificate of {attempted.address} is not trusted ({_first_line(error)}): give"
            " the PEM text of its CA as caPem of this endpoint"
        )
    cause = _CAUSES.get(type(error), _first_line(error))
    return StoreUnreachableError(
        f"{attempted.address} cannot be reached for {attempted.target} ({cause}): check the"
        " endpoint, the network policies and whether the service runs"
    )


@dataclass(frozen=True)
class _Answer:
    """What an error answer says; a HEAD has no body, so its code is its status."""

    code: str
    status: int
    text: str

    @classmethod
    def of(cls, error: ClientError) -> _Answer:
        metadata = error.response.get("ResponseMetadata", {})
        code = str(error.response.get("Error", {}).get("Code", ""))
        return cls(code, int(metadata.get("HTTPStatusCode", 0)), _first_line(error))


def _explain_answer(answer: _Answer, attempted: Attempted) -> StoreError:
    for check in (_bucket, _condition, _object, _content, _permission, _trouble):
        if (found := check(answer, attempted)) is not None:
            return found
    return StoreRefusedError(
        f"{attempted.address} refused {attempted.operation} of {attempted.target} with"
        f" {answer.status}: {answer.text}; check endpoint, region and pathStyle"
    )


def _bucket(answer: _Answer, attempted: Attempted) -> StoreError | None:
    if answer.code != "NoSuchBucket":
        return None
    bucket = "/".join(attempted.target.split("/")[:3])
    return BucketMissingError(
        f"the bucket {bucket} does not exist on {attempted.address}: create it, or correct the"
        " bucket's name"
    )


def _condition(answer: _Answer, attempted: Attempted) -> StoreError | None:
    if answer.code not in _ALREADY_THERE and answer.status != 412:
        return None
    return AlreadyThereError(f"{attempted.target} is there already, or has changed")


def _object(answer: _Answer, attempted: Attempted) -> StoreError | None:
    if answer.status == 416:
        return CorruptObjectError(
            f"{attempted.target} is damaged: it ends before the bytes that were asked for"
        )
    if answer.status != 404:
        return None
    return ObjectMissingError(f"{attempted.target} does not exist")


def _content(answer: _Answer, attempted: Attempted) -> StoreError | None:
    if answer.code not in _DAMAGED:
        return None
    return DamagedUploadError(
        f"what arrived for {attempted.target} is not what was hashed before ({answer.code}): the"
        " file changed while it was read, or the network damages data; try again"
    )


def _permission(answer: _Answer, attempted: Attempted) -> StoreError | None:
    if answer.status not in (401, 403) and answer.code not in _EXPIRED:
        return None
    return StoreDeniedError(
        f"{attempted.address} denied {attempted.permission} on {attempted.target} to"
        f" {attempted.signer} ({answer.code}): {_way_in(answer.code, attempted)}"
    )


def _trouble(answer: _Answer, attempted: Attempted) -> StoreError | None:
    overloaded = answer.status == 429 or answer.code in _BUSY
    # 501 is a request that this service will never understand.
    if not overloaded and (answer.status < 500 or answer.status == 501):
        return None
    return StoreUnreachableError(
        f"{attempted.address} is in trouble: it answered {answer.status} ({answer.code}) to"
        f" {attempted.operation} of {attempted.target}; try again later"
    )


def _way_in(code: str, attempted: Attempted) -> str:
    if code in _UNKNOWN_KEY:
        return "the service does not know this key; correct AWS_ACCESS_KEY_ID in the Secret"
    if code in _WRONG_SECRET:
        return "the secret key does not belong to it; correct AWS_SECRET_ACCESS_KEY in the Secret"
    if code in _EXPIRED:
        return "its session has expired; renew AWS_SESSION_TOKEN, or use keys without a session"
    if code in _WRONG_CLOCK:
        return "the clock of this node is wrong; set it"
    return (
        f"give it {attempted.permission} there, and s3:ListBucket on the bucket, without which a"
        " missing object looks like a forbidden one"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
