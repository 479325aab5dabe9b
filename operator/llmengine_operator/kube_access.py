"""Where the API server is, and who we are there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kubernetes import config
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import should_bypass_proxies

_POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True)
class Endpoint:
    """How a client that is not ours reaches the API server; the authorization is of this moment."""

    server: str
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    authorization: str
    insecure: bool
    proxy: str | None


class Access:
    """The cluster that $KUBECONFIG names, else the one that this pod runs in, else ~/.kube.

    Raises kubernetes.config.ConfigException when there is none.
    """

    def __init__(self, *, connections: int) -> None:
        configuration = Configuration()
        configuration.connection_pool_maxsize = connections
        configuration.retries = False
        configuration.keep_alive = True
        file = os.environ.get("KUBECONFIG")
        if _POD_TOKEN.exists() and not file:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            # Without persist_config=False it would write refreshed tokens into the user's file.
            config.load_kube_config(  # type: ignore[no-untyped-call]
                file, client_configuration=configuration, persist_config=False
            )
        self.configuration = configuration

    @property
    def server(self) -> str:
        return self.configuration.host

    def authorization(self) -> str:
        """The header's value, or nothing. Raises OSError when the token cannot be read.

        Asked for with each request: tokens are rotated, and a pod's is read anew each minute.
        """
        value = self.configuration.get_api_key_with_prefix("BearerToken", "authorization") or ""
        scheme, _, credentials = value.strip().partition(" ")
        return f"{scheme.capitalize()} {credentials.strip()}".strip()

    def endpoint(self) -> Endpoint:
        configuration = self.configuration
        proxy = configuration.proxy
        if proxy and should_bypass_proxies(configuration.host, configuration.no_proxy or ""):
            proxy = None
        return Endpoint(
            server=configuration.host,
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            authorization=self.authorization(),
            insecure=not configuration.verify_ssl,
            proxy=proxy,
        )
