"""A build's order, checked: its key is that of its factors, and this image builds just those.

An image of another release might not know a factor, and would build the wrong engine under the
right key.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from llmengine.api.v1alpha1 import EngineOptions, Portability
from llmengine.architecture import Architecture
from llmengine.key import Factors, Scope, difference, engine_factors, engine_key
from llmengine.requests import BUILD_REQUEST_VARIABLE, BuildReason, BuildRequest
from llmengine_builder.errors import BadInputError


def read_order(environment: Mapping[str, str]) -> BuildRequest:
    """The request in the environment. Raises BadInputError when it cannot be trusted."""
    text = environment.get(BUILD_REQUEST_VARIABLE)
    if text is None:
        raise _invalid(f"{BUILD_REQUEST_VARIABLE} is not set: builds are started by the operator")
    try:
        request = BuildRequest.model_validate_json(text)
        mine = _factors_of(request)
    except (ValidationError, ValueError) as error:
        raise _invalid(f"the build's request cannot be read: {error}") from error
    if engine_key(request.factors) != request.key:
        raise _invalid(f"key {request.key} is not that of the build's factors")
    if differing := difference(request.factors, mine):
        raise _invalid(
            f"the operator asks for another engine than this image builds ({'; '.join(differing)}):"
            " give the EngineRuntime the image of the operator's release"
        )
    return request


def _factors_of(request: BuildRequest) -> Factors:
    """The factors of what this image would build; those of identity are taken as they are."""
    asked = request.factors
    endpoint = asked.get("model.endpoint")
    namespace, _, claim = str(asked.get("scope", "")).partition("/")
    if namespace != request.scope_namespace:
        raise ValueError(f'scope "{namespace}" is to be published as "{request.scope_namespace}"')
    return engine_factors(
        backend=request.backend,
        backend_version=request.backend_version,
        uri=request.uri,
        revision=request.revision,
        endpoint=None if endpoint is None else str(endpoint),
        scope=Scope(namespace, claim),
        options=EngineOptions(
            dtype=request.dtype,
            quantization=request.quantization,
            max_batch_size=request.max_batch_size,
            max_sequence_length=request.max_sequence_length,
            max_batch_tokens=request.max_batch_tokens,
            portability=Portability(str(asked.get("engine.portability", Portability.DEVICE))),
        ),
        architecture=Architecture.parse(request.architecture),
    )


def _invalid(message: str) -> BadInputError:
    return BadInputError(BuildReason.REQUEST_INVALID, message)
