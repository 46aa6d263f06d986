"""Chat templates of several kinds, and the ids that a tokenizer's own template makes of a conversation."""

from __future__ import annotations

from typing import Any

#: The default model's, word for word; others whose turns end in a token, in words, or only after an answer.
CHAT_TEMPLATES = {
    "SmolLM2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n"
        "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "bare turns": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "words": (
        "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    ),
    "dated and thoughtful": (
        "{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
        "<|im_start|>system\nToday is {{ today }}.<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}"
    ),
    "instructions": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>[INST]\n{{ m['content'] }} [/INST]"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    ),
}


def template_ids(tokenizer: Any, *turns: str) -> list[int]:
    """Ids of a conversation as one text, the user's turn first, up to where the assistant speaks."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    found = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    return list(found)
