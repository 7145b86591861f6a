"""A chat template: a Jinja program of a model's folder. It is rendered in a sandbox, as transformers does it.

transformers' functions for templates (`utils/chat_template_utils.py`): raise_exception, strftime_now, tojson, the tag
`{% generation %}` around what the assistant writes, and `{% break %}` and `{% continue %}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from functools import partial, wraps
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aifx.core.errors import ConfigError, DataError
from aifx.data.chat.rows import BEGIN, END

MOST_PRODUCT = 10**6
"""Largest product of numbers, and longest repetition of a text, that a template may compute."""

# Like ChatML. Contents are trimmed, so that no token spans the end of a header and the beginning of a text.
CHATML = """\
{% for message in messages %}
{% if message.tool_calls %}{{ raise_exception('it cannot write tool_calls') }}{% endif %}
{% set text = message.content if message.content is string else message.content | map(attribute='text') | join %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ text | trim + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ text | trim + '<|im_end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

PLAIN = (
    CHATML.replace("'<|im_start|>' + message.role", "'### ' + message.role")
    .replace("'<|im_end|>'", "eos_token")
    .replace("'<|im_start|>assistant\\n'", "'### assistant\\n'")
)
"""The same in text, for tokenizers without ChatML's tokens."""


class ChatTemplate:
    """A chat template that has been checked.

    Attributes:
        marks_answers: whether it has `{% generation %}` around the assistant's text.
    """

    def __init__(self, source: str, name: str) -> None:
        """Raise DataError if `source` is not a template, or reads Python's internals. `name`: for messages."""
        self.source, self.name = source, name
        self._environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        filters = self._environment.filters
        filters |= {name: _guarded(name, filters[name]) for name in ("center", "format", "indent")}
        filters["tojson"] = _to_json
        self._environment.globals["raise_exception"] = _raise
        try:
            tree = self._environment.parse(source)
            self._template = self._environment.from_string(tree)
        except TemplateSyntaxError as error:
            hint = "correct it: docs/chat.md"
            raise DataError(f"{name}:{error.lineno}: not a chat template", str(error.message), hint) from None
        except RecursionError:
            raise DataError(f"{name}: not a chat template", "it is nested too deeply") from None
        for line, attribute in _internals(tree):
            raise _unsafe(f"{name}:{line}", f"it reads {attribute}, one of Python's internals")
        calls = (call.node for call in tree.find_all(nodes.Call))
        self.marks_answers = any(isinstance(n, nodes.ExtensionAttribute) and n.name == "_marked" for n in calls)

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, str]]:
        """Compiled templates are not picklable."""
        return ChatTemplate, (self.source, self.name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        place: str,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, str],
        today: date | None = None,
    ) -> str:
        """The text of a conversation, with `BEGIN` and `END` around what the template marks as the assistant's.

        Args:
            place: names the conversation in messages.
            variables: `bos_token`, `eos_token` and others of the tokenizer.
            today: the current day for the template; None if it must not ask for it.

        Raises DataError if the template refuses the conversation, ConfigError if it asks for the day.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=partial(_strftime, today, self.name),
                **variables,
            )
        except SecurityError as error:
            raise _unsafe(self.name, str(error)) from None
        except TemplateError as error:
            raise DataError(f"{place}: the chat template refuses it", str(error), f"template: {self.name}") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"{place}: the chat template fails", why, f"template: {self.name}") from None


def load_template(data: bytes, name: str) -> ChatTemplate:
    """The template of a file's bytes. Raises DataError."""
    try:
        return ChatTemplate(data.decode(), name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not a chat template", f"it is not UTF-8: {error.reason}", f"file {name}") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse products and padding that could fill the memory: a few characters of a template suffice for one."""
        if operator == "%":
            _check_padding("%", left)
            return super().call_binop(context, operator, left, right)
        sizes = [len(x) if isinstance(x, (str, list, tuple)) else abs(x) for x in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MOST_PRODUCT:
            raise SecurityError(f"it computes {left!r:.20} {operator} {right!r:.20}, which could fill the memory")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps `str.format`
        if isinstance(text := getattr(method, "__self__", None), str):
            _check_padding(method.__name__, text, *args, *kwargs.values())
        return super().call(context, obj, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Raise SecurityError. By default, jinja2 renders nothing here and continues."""
        raise SecurityError(f"it reads {attribute!r} of {type(obj).__name__}, one of Python's internals")


def _check_padding(function: str, text: Any, *args: Any) -> None:
    """Raise SecurityError if a function of texts is to write more than `MOST_PRODUCT` characters of padding."""
    if function in ("%", "format"):
        wide = re.findall(r"(?:%|\{[^}]*:)[^a-zA-Z%]*?(\d{7,}|[*{])", text) if isinstance(text, str) else []
    else:
        wide = [x for x in args if isinstance(x, int) and abs(x) > MOST_PRODUCT]
    if wide:
        raise SecurityError(f"{function} pads a text to {wide[0]!s:.20} characters, which could fill the memory")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are checked."""

    @wraps(function)
    def guarded(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_padding(name, value, *args, *kwargs.values())
        return function(value, *args, **kwargs)

    return guarded


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


def _internals(tree: nodes.Template) -> list[tuple[int, str]]:
    """Lines and names of attributes that only Python's internals have, also in branches that never run."""
    names = [(node.lineno, node.attr) for node in tree.find_all(nodes.Getattr)]
    names += [(node.lineno, key.value) for node in tree.find_all(nodes.Getitem) for key in node.find_all(nodes.Const)]
    for node in tree.find_all(nodes.Filter):
        arguments = (*node.args, *(pair.value for pair in node.kwargs))
        names += [(node.lineno, part.value) for part in arguments if isinstance(part, nodes.Const)]
    return sorted((line, name) for line, name in names if isinstance(name, str) and name.startswith("__"))


def _unsafe(place: str, why: str) -> DataError:
    what = f"{place}: the chat template is refused"
    return DataError(what, f"{why}; aifx renders templates in a sandbox", "do not use a model from this source")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter. Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime(today: date | None, name: str, format: str) -> str:
    if today is None:
        what = f"the chat template {name} writes the current date, and data.template_date is not set"
        why = "the rows would change from day to day"
        raise ConfigError(what, why, f"template_date = {date.today()}    (below [data])")
    return datetime(today.year, today.month, today.day).strftime(format)
