"""The adapter to Triton's Python backend: tensors in, responses out, threads started and stopped.

Importable in Triton's stub process only. Decisions are made elsewhere.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from llmengine.artifact import Manifest
from llmengine_server import alive
from llmengine_server.chat import ChatTemplate
from llmengine_server.delivery import Delivery, Reply, Stream
from llmengine_server.dialect import INPUTS, Dialect, Request
from llmengine_server.engine_loop import EngineLoop
from llmengine_server.generation import Finish
from llmengine_server.heartbeat import Heartbeat
from llmengine_server.metrics import TritonMeter
from llmengine_server.repository import ENGINE_DIRECTORY
from llmengine_server.sampling import InvalidRequestError
from llmengine_server.scheduler import Scheduler
from llmengine_server.session import EngineError
from llmengine_server.session.opening import open_session
from llmengine_server.tokenizer import Detokenizer, StopWords, Tokenizer

log = logging.getLogger(__name__)

# A Triton response costs about 0.2 ms, whatever it carries.
_STREAM_INTERVAL = 0.02
# Tells whoever reads the container's last words that the engine, not the machine, gave up.
_LOOP_FAILED = 70
# Names in `pb_utils.TritonError`, which the stub fills in only after this module is imported.
_ERRORS = {
    Finish.CANCELLED: "CANCELLED",
    Finish.FAILED: "INTERNAL",
    Finish.REFUSED: "UNAVAILABLE",
}


class TritonPythonModel:
    """One engine, served."""

    def initialize(self, args: Mapping[str, str]) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        parameters = json.loads(args["model_config"])["parameters"]
        directory = Path(parameters[ENGINE_DIRECTORY]["string_value"])
        manifest = Manifest.parse((directory / "manifest.json").read_bytes())
        try:
            session = open_session(directory, manifest)
        except EngineError as error:
            # What it imports would stay in every server's memory.
            from llmengine_server import refusal  # noqa: PLC0415

            refusal.leave(Path(alive.RUN_DIRECTORY), error)
            raise
        self._tokenizer = Tokenizer.load(directory)
        self._dialect = Dialect(
            self._tokenizer,
            ChatTemplate.load(directory),
            max_sequence_length=session.max_sequence_length,
            vocabulary=session.vocabulary,
            new_seed=lambda: secrets.randbits(64),
        )
        self._ids = itertools.count(1)
        self._loop = EngineLoop(
            Scheduler(session, time.perf_counter),
            Heartbeat(Path(alive.RUN_DIRECTORY), time.monotonic),
        )
        self._delivery = Delivery(
            interval=_STREAM_INTERVAL,
            meter=TritonMeter(pb_utils.MetricFamily, args["model_name"], args["model_version"]),
            cancel=self._loop.cancel,
        )
        self._threads = [
            _thread("engine", self._loop.run, self._delivery),
            _thread("delivery", self._delivery.run),
        ]
        log.info("engine %s serves %d slots", manifest.key[:12], session.slots)

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; their responses come from the delivery's thread."""
        for request in requests:
            responder = _Responder(request.get_response_sender())
            try:
                understood = self._dialect.read(
                    next(self._ids), _tensors(request), json.loads(request.parameters() or "{}")
                )
            except InvalidRequestError as error:
                responder.fail(str(error), "INVALID_ARG")
                continue
            except Exception as error:  # one request must not be the end of the others
                log.exception("a request could not be understood")
                responder.fail(f"the server could not understand the request: {error!r}")
                continue
            responder.request = understood
            generation = understood.generation
            stream = Stream(
                generation,
                Detokenizer(self._tokenizer, generation.prompt),
                StopWords(understood.stop_words),
                understood.streaming,
                responder,
                time.monotonic(),
            )
            if self._delivery.open(stream):
                self._loop.submit(generation)

    def finalize(self) -> None:
        """Answer whatever is open, so that the model can be unloaded."""
        self._loop.stop()
        self._delivery.close()
        for thread in self._threads:
            thread.join()


class _Responder:
    """Sends replies through Triton."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._final: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.request: Request | None = None

    def send(self, reply: Reply) -> None:
        if reply.finish in _ERRORS:
            self.fail(reply.message or reply.finish.value, _ERRORS[reply.finish])
            return
        outputs = [_strings("text_output", reply.text)]
        if reply.finish is not None:
            outputs.append(_strings("finish_reason", reply.finish.value))
        if self.request is not None and self.request.return_num_input_tokens:
            outputs.append(_count("num_input_tokens", reply.input_tokens))
        if self.request is not None and self.request.return_num_output_tokens:
            outputs.append(_count("num_output_tokens", reply.output_tokens))
        response = pb_utils.InferenceResponse(output_tensors=outputs)
        self._sender.send(response, flags=0 if reply.finish is None else self._final)

    def cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def fail(self, message: str, code: str = "INTERNAL") -> None:
        """End the request with an error; `code`: its name in `pb_utils.TritonError`."""
        error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
        self._sender.send(pb_utils.InferenceResponse(error=error), flags=self._final)


def _tensors(request: Any) -> dict[str, Any]:
    found = {}
    for declared in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, declared.name)
        if tensor is not None:
            found[declared.name] = tensor.as_numpy()
    return found


def _strings(name: str, value: str) -> Any:
    # Bytes of the text: numpy's own strings cannot hold a trailing NUL.
    return pb_utils.Tensor(name, np.array([[value.encode()]], dtype=np.object_))


def _count(name: str, value: int) -> Any:
    return pb_utils.Tensor(name, np.array([[value]], dtype=np.int32))


def _thread(name: str, run: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=_or_die, args=(run, *arguments), name=name, daemon=True)
    thread.start()
    return thread


def _or_die(run: Callable[..., None], *arguments: Any) -> None:
    """A server without its loop would take requests and never answer them."""
    try:
        run(*arguments)
    except BaseException:
        log.critical("the engine stopped; the process ends", exc_info=True)
        logging.shutdown()
        os._exit(_LOOP_FAILED)
