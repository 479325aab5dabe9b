"""Static credentials of an S3 service, taken from the environment of a pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Prefixes that a pod's `envFrom` gives to the keys of a Secret: one Secret for the store, one for
# the model. A plain AWS_* variable is neither, and is left to boto3's own chain.
STORE_PREFIX = "STORE_"
MODEL_PREFIX = "MODEL_"

_ACCESS_KEY, _SECRET_KEY, _TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


class IncompleteCredentialsError(ValueError):
    """A Secret holds one half of a key pair."""


@dataclass(frozen=True)
class Credentials:
    """An access key. The secret parts stay out of its repr, and so out of logs."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, prefix: str, environment: Mapping[str, str]) -> Credentials | None:
        """The key pair whose variables begin with `prefix`; None when there is none.

        None means workload identity: boto3 then looks where the platform puts credentials.
        Raises IncompleteCredentialsError.
        """
        # A Secret edited by hand tends to end in a newline, which no key contains.
        names = (_ACCESS_KEY, _SECRET_KEY, _TOKEN)
        values = {name: environment.get(prefix + name, "").strip() for name in names}
        if not values[_ACCESS_KEY] and not values[_SECRET_KEY]:
            return None
        for present, absent in ((_ACCESS_KEY, _SECRET_KEY), (_SECRET_KEY, _ACCESS_KEY)):
            if not values[absent]:
                raise IncompleteCredentialsError(
                    f"the Secret behind the variables {prefix}* has {present} but no {absent}:"
                    " it needs both"
                )
        return cls(values[_ACCESS_KEY], values[_SECRET_KEY], values[_TOKEN] or None)
