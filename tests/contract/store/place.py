"""Where a test keeps its engines."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmengine.requests import StoreLocation
from llmengine.store import Credentials, Store, Timeouts
from tests.cluster import s3
from tests.engines import PREFIX

# Tests do not wait: a server on loopback answers at once or not at all.
IMPATIENT = Timeouts(connect_seconds=2, read_seconds=2, attempts=1)


@dataclass(frozen=True)
class Place:
    """A bucket on a server, and who asks for it."""

    server: s3.S3Server
    location: StoreLocation
    user: s3.Credentials

    @classmethod
    def new(cls, server: s3.S3Server) -> Place:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        server.make_bucket(bucket)
        location = StoreLocation(
            endpoint=server.endpoint,
            bucket=bucket,
            prefix=PREFIX,
            ca_pem=server.ca_file.read_text() if server.ca_file else "",
        )
        return cls(server, location, server.root)

    def at(self, address: str) -> Place:
        """The same, reached by another address, such as that of a proxy."""
        return replace(
            self, location=self.location.model_copy(update={"endpoint": f"http://{address}"})
        )

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.user.access_key, self.user.secret_key)

    def store(self, timeouts: Timeouts | None = None) -> Store:
        return Store(self.location, self.credentials, timeouts=timeouts)

    def objects(self) -> list[str]:
        """Everything that lies in the bucket."""
        answer = self.server.client().list_objects_v2(Bucket=self.location.bucket)
        return [entry["Key"] for entry in answer.get("Contents", [])]

    def unfinished_uploads(self) -> list[Any]:
        answer = self.server.client().list_multipart_uploads(Bucket=self.location.bucket)
        return list(answer.get("Uploads", []))

    def on_disk(self, key: str) -> Path:
        """The server's own file of an object."""
        return self.server.folder / "data/buckets" / self.location.bucket / key
