"""Small chat templates of the shapes that reasoning models have, written for the tests.

Each is a source, and what a prompt has to end with so that the next token is the answer's first.
"""

EMPTY = "<think>\n\n</think>\n\n"
TURN = "<|im_start|>assistant\n"


def chat(assistant, prompt, before=""):
    """A ChatML template: what an answer is written as, and what a prompt ends with."""
    return (
        before
        + "{% for m in messages %}{% if m.role == 'assistant' %}"
        + assistant
        + "<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )


STRIPPED = "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
BLOCK = (
    "{% set r = '' %}{% set c = m.content %}{% if '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)
WITH_BLOCK = TURN + BLOCK + "<think>\n{{ r }}\n</think>\n\n{{ c }}"
OFF = "{% if enable_thinking is defined and enable_thinking is false %}"
HARMONY = (
    "<|start|>system<|message|>Today: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant"
)
FINAL = "<|start|>assistant<|channel|>final<|message|>"

SHAPES = {
    # DeepSeek-R1: the block is opened for a prompt, taken out of an answer.
    "deepseek-r1": (chat(TURN + STRIPPED, TURN + "<think>\n"), TURN + EMPTY),
    "qwq": (chat(TURN + "{{ m.content }}", TURN + "<think>\n"), TURN + EMPTY),
    # No line break behind the mark.
    "opened on the line": (chat(TURN + "{{ m.content }}", TURN + "<think>"), TURN + EMPTY),
    "qwen3": (chat(WITH_BLOCK, TURN + OFF + EMPTY + "{% endif %}"), TURN + EMPTY),
    "qwen3-thinking": (chat(WITH_BLOCK, TURN + "<think>\n"), TURN + EMPTY),
    # An empty block in the answer alone.
    "block in pairs": (chat(WITH_BLOCK, TURN), TURN + EMPTY),
    # Opened in both, closed in neither.
    "opened in pairs": (
        chat(TURN + "<think>\n{{ m.content }}", TURN + "<think>\n"),
        TURN + EMPTY,
    ),
    # A closed block for a prompt, none in the answer.
    "closed for prompts": (
        chat(TURN + "{{ m.content }}", TURN + OFF + EMPTY + "{% endif %}"),
        TURN + EMPTY,
    ),
    "smollm3": (
        chat(
            TURN + OFF + "<think>\n\n</think>\n{% endif %}{{ m.content.lstrip('\\n') }}",
            TURN + OFF + "<think>\n\n</think>\n{% endif %}",
            "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}<|im_end|>\n",
        ),
        TURN + "<think>\n\n</think>\n",
    ),
    "nemotron": (
        chat(TURN + STRIPPED, TURN + OFF + "<think></think>{% else %}<think>\n{% endif %}"),
        TURN + "<think></think>",
    ),
    # The end of a block without a beginning.
    "deepseek-v3.1": (
        chat(
            TURN + "</think>{{ m.content }}",
            TURN + "{% if thinking %}<think>{% else %}</think>{% endif %}",
        ),
        TURN + "</think>",
    ),
    "granite": (
        chat(TURN + "{{ m.content }}", TURN, "{% if thinking %}Think first.{% endif %}"),
        TURN,
    ),
    "kimi": (
        chat(TURN + "{{ m.content }}", TURN + "◁think▷"),
        TURN + "◁think▷◁/think▷",
    ),
    "kimi-k2.5": (
        chat(
            TURN + "<think></think>{{ m.content }}",
            TURN + "{% if thinking is defined and thinking is false %}<think></think>"
            "{% else %}<think>{% endif %}",
        ),
        TURN + "<think></think>",
    ),
    "seed-oss": (
        chat(
            TURN + "{{ m.content }}",
            TURN + "{% if thinking_budget is defined and thinking_budget == 0 %}"
            "<seed:think>No budget.</seed:think>{% endif %}",
        ),
        TURN + "<seed:think>No budget.</seed:think>",
    ),
    # Its own way to say so is opened for a prompt, and left to the model to end.
    "seed-oss, opened": (
        chat(
            TURN + "{{ m.content }}",
            TURN + "{% if thinking_budget == 0 %}<seed:think><seed:cot_budget_reflect>{% endif %}",
        ),
        TURN + "<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will "
        "directly start answering the question.</seed:cot_budget_reflect>\n</seed:think>",
    ),
    "gemma-4": (
        chat(
            TURN + "{{ m.content }}",
            TURN + "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}",
        ),
        TURN + "<|channel>thought\n<channel|>",
    ),
    "apriel": (
        chat(TURN + "{{ m.content }}", TURN + "Here are my reasoning steps:\n"),
        TURN + "Here are my reasoning steps:\n[BEGIN FINAL RESPONSE]\n",
    ),
    "exaone-deep": (
        chat(TURN + "{{ m.content }}", TURN + "<thought>\n"),
        TURN + "<thought>\n\n</thought>\n\n",
    ),
    "magistral": (
        chat(TURN + "{{ m.content }}", TURN, "First draft inside [THINK] and [/THINK].\n"),
        TURN,
    ),
    "gpt-oss": (HARMONY + "{% endif %}", FINAL),
    "gpt-oss, analysis opened": (
        HARMONY + "<|channel|>analysis<|message|>{% endif %}",
        f"<|start|>assistant<|channel|>analysis<|message|><|end|>{FINAL}",
    ),
    # No reasoning, but a template that knows no generation prompt.
    "no generation prompt": (chat(TURN + "{{ m.content }}", ""), TURN),
    "plain": (chat(TURN + "{{ m.content }}", TURN), TURN),
}
