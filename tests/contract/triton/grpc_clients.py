"""gRPC clients: Triton's own in both its forms, and one written for TensorRT-LLM's ensemble."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

# What a client of the ensemble sends when it sends everything: the data types are the ensemble's.
ENSEMBLE_DEFAULTS: Mapping[str, tuple[Any, type]] = {
    "bad_words": ([""], np.object_),
    "stop_words": ([""], np.object_),
    "top_k": (1, np.int32),
    "top_p": (0.0, np.float32),
    "temperature": (1.0, np.float32),
    "length_penalty": (1.0, np.float32),
    "repetition_penalty": (1.0, np.float32),
    "min_tokens": (1, np.int32),
    "presence_penalty": (0.0, np.float32),
    "frequency_penalty": (0.0, np.float32),
    "seed": (0, np.uint64),
    "return_log_probs": (False, np.bool_),
    "return_context_logits": (False, np.bool_),
    "return_generation_logits": (False, np.bool_),
    "beam_width": (1, np.int32),
    "num_return_sequences": (1, np.int32),
    "exclude_input_in_output": (True, np.bool_),
}
TYPES: Mapping[str, type] = {
    "text_input": np.object_,
    "messages": np.object_,
    "max_tokens": np.int32,
    "end_id": np.int32,
    "pad_id": np.int32,
    "stream": np.bool_,
    **{name: type_ for name, (_, type_) in ENSEMBLE_DEFAULTS.items()},
}


def tensors(client: Any, values: Mapping[str, Any]) -> list[Any]:
    """[1, n] tensors, as the ensemble's clients make them."""
    made = []
    for name, value in values.items():
        row = value if isinstance(value, list) else [value]
        row = [v.encode() if isinstance(v, str) else v for v in row]
        data: NDArray[Any] = np.array([row], dtype=TYPES[name])
        tensor = client.InferInput(name, list(data.shape), np_to_triton_dtype(data.dtype))
        tensor.set_data_from_numpy(data)
        made.append(tensor)
    return made


def text_of(result: Any) -> str:
    output = result.as_numpy("text_output")
    assert output.shape == (1, 1)
    return str(output[0, 0].decode())


def is_last(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


class SyncStream:
    """`InferenceServerClient.start_stream` of tritonclient.grpc.

    `status_codes`: ask Triton to end the stream at an error, with a status; by default an error
    is a message of one request.
    """

    def __init__(self, url: str, model: str, *, status_codes: bool = False) -> None:
        self._model = model
        self._client = grpc_client.InferenceServerClient(url)
        self._answers: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = (
            queue.SimpleQueue()
        )
        self._client.start_stream(
            lambda result, error: self._answers.put((result, error)),
            headers={"triton_grpc_error": "true"} if status_codes else None,
        )

    def send(self, request_id: str = "", outputs: list[str] | None = None, **values: Any) -> None:
        wanted = [grpc_client.InferRequestedOutput(name) for name in outputs or []]
        self._client.async_stream_infer(
            self._model,
            tensors(grpc_client, values),
            outputs=wanted or None,
            request_id=request_id,
            enable_empty_final_response=True,
        )

    def take(self) -> Any:
        """The next response. Raises what the server answered when that is an error."""
        result, error = self._answers.get(timeout=30)
        if error is not None:
            raise error
        return result

    def all(self) -> list[Any]:
        """Responses to the last one."""
        results = [self.take()]
        while not is_last(results[-1]):
            results.append(self.take())
        return results

    def close(self, cancel: bool = False) -> None:
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


def ensemble_request(url: str, model: str, prompt: str, max_tokens: int, stream: bool) -> str:
    """Ask as TensorRT-LLM's own example clients do: every input, only text_output back."""
    connection = SyncStream(url, model)
    values = {name: value for name, (value, _) in ENSEMBLE_DEFAULTS.items()}
    connection.send(
        outputs=["text_output"],
        text_input=prompt,
        max_tokens=max_tokens,
        stream=stream,
        end_id=-1,
        pad_id=2,
        **values,
    )
    results = connection.all()
    connection.close()
    return "".join(text_of(r) for r in results if r.as_numpy("text_output") is not None)


async def aio_stream(
    client: grpc_aio.InferenceServerClient, model: str, **values: Any
) -> AsyncIterator[Any]:
    """Results of tritonclient.grpc.aio's stream_infer; raises what the server answers."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": model,
            "inputs": tensors(grpc_aio, values),
            "enable_empty_final_response": True,
        }

    responses = client.stream_infer(requests())
    try:
        async for result, error in responses:
            if error is not None:
                raise error
            yield result
            if is_last(result):
                break
    finally:
        responses.cancel()
