"""Messages of the API as chat templates read them."""

from __future__ import annotations

import json
from typing import Any

from aifx.serving.http.errors import ApiError
from aifx.serving.http.protocol import AssistantMessage, Content, Messages, ToolMessage


def template_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages with plain texts, and the arguments of earlier calls as objects. Raises ApiError."""
    plain: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        made: dict[str, Any] = {"role": message.role, "content": _text(message.content)}
        if message.name is not None:
            made["name"] = message.name
        if isinstance(message, ToolMessage):
            made["tool_call_id"] = message.tool_call_id
        if isinstance(message, AssistantMessage):
            if message.tool_calls:
                made["tool_calls"] = _calls(message, f"messages[{index}].tool_calls")
            elif made["content"] is None:
                field = f"messages[{index}].content"
                raise ApiError(400, f"{field}: a message without tool_calls has content", param=field)
        plain.append(made)
    return plain


def _text(content: Content | None) -> str | None:
    return content if content is None or isinstance(content, str) else "\n".join(part.text for part in content)


def _calls(message: AssistantMessage, where: str) -> list[dict[str, Any]]:
    calls = []
    for index, call in enumerate(message.tool_calls or ()):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            field = f"{where}[{index}].function.arguments"
            raise ApiError(400, f"{field} is not JSON: {error}", param=field) from None
        function = {"name": call.function.name, "arguments": arguments}
        calls.append({"id": call.id, "type": "function", "function": function})
    return calls
