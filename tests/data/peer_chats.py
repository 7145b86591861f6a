"""Results of transformers for chat templates, stored in stored_chats.json.

`tokenizer PATH` writes the tokenizer of the tests. With a Python that has transformers, `store PATH` writes the file
again, and `check PATH` compares it with what this version makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STORED = Path(__file__).with_name("stored_chats.json")
SPECIAL = ("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")

TAGGED = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{% else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As Qwen's for training: history is shown without thoughts, and only what follows the last question is marked.
THOUGHTS = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
  {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content %}
  {%- if message.role == 'assistant' and loop.index0 > ns.last %}
    {{- '<|im_start|>assistant\\n' }}{% generation %}{{ content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
  {%- else %}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As Mistral's: no tags, no beginning of an answer, the system's text in the first question.
BRACKETS = """\
{%- if messages[0].role == 'system' %}
  {%- set system = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- bos_token }}
{%- for message in rest %}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
  {%- if message.role == 'user' %}
    {{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
  {%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

TEMPLATES = {"tagged": TAGGED, "thoughts": THOUGHTS, "brackets": BRACKETS}
CONVERSATIONS = (
    [("user", "Hi there"), ("assistant", "Hello, you!")],
    [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye?"), ("assistant", "So long.\nÜx")],
    [
        ("user", "a <b>"),
        ("assistant", "<think>\nhm\n</think>\n\nYes"),
        ("user", "2"),
        ("assistant", "<think>\n</think>\nNo"),
    ],
)


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in CONVERSATIONS[number]]


def by_transformers(path: str) -> dict[str, object]:
    import transformers

    cases = []
    for name, template in TEMPLATES.items():
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<s>", eos_token="<|im_end|>")
        tokenizer.chat_template = template
        for number in range(len(CONVERSATIONS)):
            whole = tokenizer.apply_chat_template(
                messages(number), tokenize=True, return_dict=True, return_assistant_tokens_mask="generation" in template
            )
            prompt = tokenizer.apply_chat_template(
                messages(number)[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            mask = list(whole["assistant_masks"]) if "assistant_masks" in whole else None
            case = {"template": name, "conversation": number, "ids": list(whole["input_ids"]), "mask": mask}
            cases.append({**case, "prompt": list(prompt)})
    return {"origin": f"transformers {transformers.__version__}", "cases": cases}


def main(verb: str, path: str) -> int:
    if verb == "tokenizer":
        from aifx.data.tokenizer import train_tokenizer

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(train_tokenizer((), 256 + len(SPECIAL), SPECIAL))
        return 0
    made = by_transformers(path)
    if verb == "store":
        lines = ",\n".join(json.dumps(case) for case in made["cases"])  # type: ignore[attr-defined]
        STORED.write_text(f'{{"origin": {json.dumps(made["origin"])}, "cases": [\n{lines}\n]}}\n')
        return 0
    return 0 if made["cases"] == json.loads(STORED.read_text())["cases"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
