"""Asks a served model one question over gRPC streaming, and prints the answer as it comes."""

from __future__ import annotations

import argparse
import json
import queue
import sys

import numpy as np
from tritonclient import grpc


def main() -> int:
    parser = argparse.ArgumentParser(prog="ask", description=__doc__)
    parser.add_argument("address", help="host:port of Triton's gRPC service")
    parser.add_argument("model", help="the served model's name")
    parser.add_argument("question")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    messages = json.dumps([{"role": "user", "content": options.question}])
    for text in ask(options.address, options.model, messages, options.max_tokens):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def ask(address: str, model: str, messages: str, max_tokens: int) -> list[str]:
    """The answer in the pieces that were streamed. Raises InferenceServerException."""
    answers: queue.SimpleQueue[tuple[grpc.InferResult | None, Exception | None]]
    answers = queue.SimpleQueue()
    inputs = [
        _text("messages", messages),
        _number("max_tokens", max_tokens),
        _flag("stream", True),
    ]
    pieces = []
    with grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        while True:
            result, error = answers.get(timeout=120)
            if error is not None or result is None:
                raise error or RuntimeError("no result")
            text = result.as_numpy("text_output")
            if text is not None and text.size:
                pieces.append(text.flat[0].decode())
            if result.get_response().parameters["triton_final_response"].bool_param:
                return pieces


def _text(name: str, value: str) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value.encode()]], dtype=np.object_))
    return tensor


def _number(name: str, value: int) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.int32))
    return tensor


def _flag(name: str, value: bool) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, 1], "BOOL")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.bool_))
    return tensor


if __name__ == "__main__":
    raise SystemExit(main())
