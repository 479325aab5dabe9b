"""Messages through a model's template, as transformers renders them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmengine_server.chat import ChatTemplate
from llmengine_server.sampling import InvalidRequestError
from tests.models import golden, tiny_tokenizer

HELLO = json.dumps([{"role": "user", "content": "Hello"}])


def render(source: str, messages: Any = None, **special: str) -> str:
    text = HELLO if messages is None else json.dumps(messages)
    return ChatTemplate(source, special).render(text)


def test_the_tiny_models_template() -> None:
    rendered = render(tiny_tokenizer.CHAT_TEMPLATE, bos_token="<|bos|>")
    assert rendered == "<|bos|><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(
            "{% for m in messages %}\n  {% if m %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}",
            "Hello\n",
            id="blocks take their line with them",
        ),
        pytest.param(
            "{{ {'a': '<é> & \"'} | tojson }}", '{"a": "<é> & \\""}', id="tojson escapes no HTML"
        ),
        pytest.param(
            "{{ [1, {'b': 2}] | tojson(indent=1) }}",
            '[\n 1,\n {\n  "b": 2\n }\n]',
            id="tojson takes an indent",
        ),
        pytest.param(
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
            "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
            id="loops have break and continue",
        ),
        pytest.param(
            "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
            "Hello!",
            id="generation marks nothing here",
        ),
        pytest.param("{{ bos_token }}{{ eos_token }}", "<s></s>", id="special tokens by name"),
        pytest.param(
            "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
            "TrueTrueTrue",
            id="no tools, no documents, ready for the answer",
        ),
    ],
)
def test_templates_have_what_transformers_gives_them(source: str, expected: str) -> None:
    assert render(source, bos_token="<s>", eos_token="</s>") == expected


def test_templates_may_ask_for_the_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))


def test_a_templates_own_refusal_reaches_the_client() -> None:
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    with pytest.raises(InvalidRequestError, match="refused the messages: system first"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ ''.__class__.__mro__ }}", id="classes"),
        pytest.param("{{ messages.append(1) }}", id="changing its input"),
        pytest.param("{{ range(99999999) | list }}", id="huge ranges"),
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        render(source)


def test_a_template_that_fails_is_not_the_servers_end() -> None:
    with pytest.raises(InvalidRequestError, match="failed on the messages: ZeroDivisionError"):
        render("{{ 1 // 0 }}")


def test_a_broken_template_is_the_engines_fault_and_said_at_start() -> None:
    with pytest.raises(ValueError, match="chat template cannot be read"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("{", "messages is not JSON"),
        ("[]", "messages must be a JSON list such as"),
        ('{"role": "user"}', "messages must be a JSON list such as"),
        ('["hello"]', "messages[0] must be an object with role and content"),
        ('[{"role": "user"}]', "messages[0].content must be a string"),
        ('[{"role": "user", "content": "a"}, {"content": "b"}]', "messages[1].role must be"),
        ('[{"role": "user", "content": ["a"]}]', "messages[0].content must be a string"),
    ],
)
def test_bad_messages_are_refused_with_a_sentence(messages: str, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(sentence)):
        ChatTemplate("").render(messages)


def test_a_model_without_a_template_says_what_to_send() -> None:
    with pytest.raises(InvalidRequestError, match="send the whole prompt as text_input"):
        ChatTemplate(None).render(HELLO)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"chat_template.jinja": "{{ bos_token }}from"}, id="a file of its own"),
        pytest.param(
            {"tokenizer_config.json": {"chat_template": "{{ bos_token }}from"}}, id="config"
        ),
        pytest.param(
            {"chat_template.json": {"chat_template": "{{ bos_token }}from"}}, id="a JSON file"
        ),
        pytest.param(
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "other"},
                        {"name": "default", "template": "{{ bos_token }}from"},
                    ]
                }
            },
            id="several by name",
        ),
    ],
)
def test_a_template_is_found_where_models_keep_it(tmp_path: Path, files: dict[str, Any]) -> None:
    config = {"bos_token": {"content": "<s>"}, **files.pop("tokenizer_config.json", {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    assert ChatTemplate.load(tmp_path).render(HELLO) == "<s>from"


@pytest.mark.model
def test_smollm2s_template_renders_what_transformers_renders() -> None:
    from tests.models import smollm2

    template = ChatTemplate.load(smollm2.directory())
    for conversation in golden.load_smollm2().conversations:
        assert template.render(json.dumps(conversation.messages)) == conversation.prompt
