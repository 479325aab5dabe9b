"""Messages to one prompt, by the model's own template in a sandbox.

The environment is what transformers gives chat templates; a template that works there, works here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmengine_server.sampling import InvalidRequestError
from llmengine_server.tokenizer import read_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks an assistant's words for training; here only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class ChatTemplate:
    """A model's chat template and the special tokens that it may name."""

    def __init__(self, source: str | None, special: Mapping[str, str] | None = None) -> None:
        """Raises ValueError for a template that jinja2 cannot read."""
        self._special = dict(special or {})
        self._template: jinja2.Template | None = None
        if source is None:
            return
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template cannot be read: {error}") from error

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate:
        """Read chat_template.jinja, else tokenizer_config.json, else chat_template.json."""
        config = read_json(directory / "tokenizer_config.json")
        special = {name: text for name in _SPECIAL if (text := _content(config.get(name)))}
        file = directory / "chat_template.jinja"
        if file.is_file():
            return cls(file.read_text(encoding="utf-8"), special)
        source = config.get("chat_template")
        if source is None:
            source = read_json(directory / "chat_template.json").get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        return cls(source, special)

    def render(self, messages: str) -> str:
        """The prompt for a JSON list of messages, ready for the assistant's answer.

        Raises InvalidRequestError for bad messages, and when the template refuses them.
        """
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template: send the whole prompt as text_input"
            )
        parsed = parse_messages(messages)
        try:
            return self._template.render(
                messages=parsed,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refused the messages: {error}"
            ) from error
        except Exception as error:  # a template may do anything that Python can
            raise InvalidRequestError(
                f"the model's chat template failed on the messages: {error!r}"
            ) from error


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Messages as the template takes them. Raises InvalidRequestError."""
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"messages is not JSON: {error}") from error
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            'messages must be a JSON list such as [{"role": "user", "content": "Hello"}]'
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequestError(f"messages[{index}] must be an object with role and content")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                raise InvalidRequestError(f"messages[{index}].{field} must be a string")
    return messages


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which changes the prompt.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _content(token: Any) -> str | None:
    """A special token is a string, or an object with its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
