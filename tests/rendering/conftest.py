"""Tokenizer folders for the rendering tests: trained here, with templates of three kinds; and real ones."""

from __future__ import annotations

import pytest

from real_tokenizers import unpack_real
from rendering_folders import write_folder
from tokentrue import Renderer, load_renderer

QWEN_LIKE = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Tools:' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if m.reasoning_content and loop.index0 > ns.last %}
            {{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}
            {%- if m.content or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- set given = call.function.arguments %}{{- given if given is string else given | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA_LIKE = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}{%- set rest = messages %}
{%- endif %}
{{- '<|im_start|>system<|im_mid|>\\n\\nToday: ' + strftime_now('%d %b %Y') + '\\n\\n' + system }}
{%- for tool in tools or [] %}{{- '\\n' + (tool | tojson(indent=4)) }}{%- endfor %}
{{- '<|im_end|>' }}
{%- for m in rest %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>ipython<|im_mid|>\\n\\n' + (m.content | tojson) + '<|im_end|>' }}
    {%- elif m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('only one call at a time') }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|im_start|>assistant<|im_mid|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- (call.arguments | tojson) + '}<|im_end|>' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '<|im_mid|>\\n\\n' + (m.content | trim) + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_mid|>\\n\\n' }}{%- endif %}"""

NO_CLOSE = """{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"""


@pytest.fixture(scope="session")
def qwen_like(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(write_folder(tmp_path_factory.mktemp("qwen_like"), QWEN_LIKE))


@pytest.fixture(scope="session")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(write_folder(tmp_path_factory.mktemp("llama_like"), LLAMA_LIKE))


@pytest.fixture(scope="session")
def without_close(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(write_folder(tmp_path_factory.mktemp("no_close"), NO_CLOSE))


@pytest.fixture(scope="session")
def real_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(unpack_real("qwen3", tmp_path_factory.mktemp("qwen3")))


@pytest.fixture(scope="session")
def real_llama(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(unpack_real("llama-3.1", tmp_path_factory.mktemp("llama")))


@pytest.fixture(
    scope="session", params=["qwen_like", "llama_like", "real_qwen3", "real_llama"], ids=lambda name: name
)
def renderer(request: pytest.FixtureRequest) -> Renderer:
    """Every renderer that must be exact."""
    found: Renderer = request.getfixturevalue(request.param)
    return found
