"""One small template per argument grammar, on a tokenizer whose every token is one byte, so that a cut between
ids is a cut at any byte. The shapes are those of the families named; the texts are written for these tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tokentrue import Renderer
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.renderer import make_renderer
from tokentrue.rendering.tokenizer import Tokenizer

_TOOLS = "{%- if tools %}{{- '[s]' + (tools | tojson) + '[e]' }}{%- endif %}"
_FRAME = (
    _TOOLS
    + """{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{- '[a]' }}%(assistant)s{{- '[e]' }}
    {%- else %}{{- '[' + m.role[0] + ']' + (m.content or '') + '[e]' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[a]' }}{%- endif %}"""
)
_THINK = "{%- if m.reasoning_content %}{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}"
_SAY = _THINK + "{{- m.content or '' }}"
_CALLS = "{%- for call in m.tool_calls or [] %}{%- set f = call.function %}"
_ARGS = "{%- for k, v in f.arguments.items() %}"
_V = "(v if v is string else v | tojson)"

HERMES = (
    _SAY
    + _CALLS
    + """{%- if m.content or not loop.first %}{{- '\\n' }}{%- endif %}
    {{- '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}"""
)
OPENED_ONCE = (
    _SAY
    + "{%- if m.tool_calls %}{{- '<tool_call>\\n' }}"
    + _CALLS
    + """{{- '{ "arguments": ' + (f.arguments | tojson) + ', "name": "' + f.name + '"}\\n</tool_call> ' }}
    {%- endfor %}{%- endif %}"""
)
CODER = (
    _SAY
    + _CALLS
    + """{{- '\\n<tool_call>\\n<function=' + f.name + '>\\n' }}"""
    + _ARGS
    + "{{- '<parameter=' + k + '>\\n' + "
    + _V
    + """ + '\\n</parameter>\\n' }}{%- endfor %}{{- '</function>\\n</tool_call>' }}{%- endfor %}"""
)
QUOTED_TAGS = (
    _SAY
    + _CALLS
    + """{%- if m.content or not loop.first %}{{- '\\n' }}{%- endif %}{{- '<call name="' + f.name + '">' }}"""
    + _ARGS
    + """{{- '<arg name="' + k + '">' }}
    {%- if v is string and ('<' in v or '&' in v or '\\n' in v) %}{{- '<![CDATA[' + v + ']]>' }}
    {%- else %}{{- v if v is string else v | tojson }}{%- endif %}{{- '</arg>' }}{%- endfor %}
    {{- '</call>' }}{%- endfor %}"""
)
PYTHONIC_CODER = CODER.replace("v | tojson", "v | string")
INVOKE = (
    _SAY
    + "{%- if m.tool_calls %}{{- '\\n<calls>\\n' }}"
    + _CALLS
    + """{{- '<invoke name="' + f.name + '">\\n' }}"""
    + _ARGS
    + """{{- '<parameter name="' + k + '">' + """
    + _V
    + """ + '</parameter>\\n' }}{%- endfor %}{{- '</invoke>\\n' }}{%- endfor %}{{- '</calls>' }}{%- endif %}"""
)
KEY_VALUE = (
    _SAY
    + _CALLS
    + """{{- '\\n<tool_call>' + f.name + '\\n' }}"""
    + _ARGS
    + "{{- '<arg_key>' + k + '</arg_key>\\n<arg_value>' + "
    + _V
    + """ + '</arg_value>\\n' }}{%- endfor %}{{- '</tool_call>' }}{%- endfor %}"""
)
TIGHT_KEY_VALUE = KEY_VALUE.replace("\\n", "").replace("f.name + ''", "f.name + '<sep>'")
SECTION = (
    _SAY
    + "{%- if m.tool_calls %}{{- '<calls>' }}"
    + _CALLS
    + """{%- if not loop.first %}{{- '\\n' }}{%- endif %}
    {{- '<call>function<sep>' + f.name + '\\n```json\\n' + (f.arguments | tojson) + '\\n```</call>' }}
    {%- endfor %}{{- '</calls>' }}{%- endif %}"""
)
IDS = (
    _SAY
    + "{%- if m.tool_calls %}{{- '<calls>' }}"
    + """{%- for call in m.tool_calls %}
    {{- '<call>' + call.id + '<sep>' + (call.function.arguments | tojson) + '</call>' }}
    {%- endfor %}{{- '</calls>' }}{%- endif %}"""
)
NUMBERED = IDS.replace("call.id", "'functions.' + call.function.name + ':' + (loop.index0 | string)")
FRAMED = (
    "{%- if m.tool_calls %}{{- '<act>[\\n' }}"
    + _CALLS
    + """{{- '    {"tool_call_id": "' + (loop.index0 | string) + '", "tool_name": "' + f.name }}
    {{- '", "parameters": ' + (f.arguments | tojson) + '}' }}
    {%- if not loop.last %}{{- ',\\n' }}{%- endif %}{%- endfor %}{{- '\\n]</act>' }}
    {%- else %}{{- '<say>' + m.content + '</say>' }}{%- endif %}"""
)
JSON_LIST = (
    "{%- if m.tool_calls %}{{- '[TOOL_CALLS][' }}"
    + _CALLS
    + """{{- '{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + ', "id": "' + call.id + '"}' }}
    {%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}{%- else %}{{- m.content }}{%- endif %}"""
)
NAME_ARGS = _SAY + _CALLS + "{{- '[TOOL_CALLS]' + f.name + '[ARGS]' + (f.arguments | tojson) }}{%- endfor %}"
NAME_ID_ARGS = NAME_ARGS.replace("+ '[ARGS]'", "+ '[CALL_ID]' + call.id + '[ARGS]'")
BARE = (
    "{%- if m.tool_calls %}{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call') }}{%- endif %}"
    + """{%- set f = m.tool_calls[0].function %}
    {{- '{"name": "' + f.name + '", "parameters": ' + (f.arguments | tojson) + '}' }}
    {%- else %}{{- m.content }}{%- endif %}"""
)
PLAIN_TAGS = (
    _SAY + _CALLS + "{{- '<function=' + f.name + '>' + (f.arguments | tojson) + '</function>' }}{%- endfor %}"
)
QUOTED = """{%- macro write(v) %}{%- if v is string %}{{- '<q>' + v + '<q>' }}
    {%- elif v is boolean %}{{- 'true' if v else 'false' }}
    {%- elif v is mapping %}{{- '{' }}{%- for k, i in v | dictsort %}{{- k + ':' }}{{- write(i) }}
        {%- if not loop.last %},{% endif %}{%- endfor %}{{- '}' }}
    {%- elif v is sequence %}{{- '[' }}{%- for i in v %}{{- write(i) }}{%- if not loop.last %},{% endif %}
        {%- endfor %}{{- ']' }}
    {%- else %}{{- v }}{%- endif %}{%- endmacro %}
    {%- if m.reasoning_content %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}""" + (
    _CALLS
    + """{{- '<call>call:' + f.name }}{{- write(f.arguments) }}{{- '</call>' }}{%- endfor %}
    {{- m.content or '' }}"""
)
FRAMED_TEXT = (
    "{{- ' final\\n<msg>' + (m.content or '') }}{%- if not m.tool_calls %}{{- '<end>' }}{%- endif %}"
    + _CALLS
    + """{%- if m.content or not loop.first %}{{- '\\n' }}{%- endif %}
    {{- '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}"""
)
_PYTHON_CALL = (
    "{{- f.name + '(' }}"
    + _ARGS
    + """{{- k + '=' }}{%- if v is string %}
    {{- "'" + (v | replace("\\\\", "\\\\\\\\") | replace("'", "\\\\'") | replace("\\n", "\\\\n")) + "'" }}
    {%- elif v is mapping or v is iterable %}{{- v | tojson }}{%- else %}{{- v | string }}{%- endif %}
    {%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ')' }}
    {%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}"""
)
PYTHON = (
    _SAY + "{%- if m.tool_calls %}{{- '<calls>[' }}" + _CALLS + _PYTHON_CALL + "{{- ']</calls>' }}{%- endif %}"
)
BARE_PYTHON = (
    "{%- if m.tool_calls %}{{- '[' }}"
    + _CALLS
    + _PYTHON_CALL
    + "{{- ']' }}{%- else %}{{- m.content }}{%- endif %}"
)
UNQUOTED_PYTHON = """{%- if m.tool_calls %}{{- '[' }}""" + (
    _CALLS
    + "{{- f.name + '(' }}"
    + _ARGS
    + """{{- k + '=' }}{{- '%s' | format(v) }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}
    {{- ')' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}
    {%- else %}{{- m.content }}{%- endif %}"""
)
ENDED_TEXT = "{{- m.content or '' }}{{- '</say>' }}"
RECIPIENTS = (
    _TOOLS
    + """{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{- '[a]<to>' }}
        {%- if m.content or not m.tool_calls %}{{- 'all\\n<msg>' + (m.content or '') }}
        {%- if m.tool_calls %}{{- '\\n[a]<to>' }}{%- endif %}{%- endif %}
        {%- for call in m.tool_calls or [] %}
        {{- call.function.name + '\\n<msg>' + (call.function.arguments | tojson) }}
        {%- if not loop.last %}{{- '\\n[a]<to>' }}{%- endif %}{%- endfor %}{{- '[e]' }}
    {%- else %}{{- '[' + m.role[0] + ']' + (m.content or '') + '[e]' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[a]<to>' }}{%- endif %}"""
)
RECIPIENTS_AS_TEXT = RECIPIENTS.replace("\\n[a]<to>", ">>>").replace("<msg>", "")
ELEMENTS = (
    _TOOLS
    + """{%- macro attr(v) %}{{- v | replace('&', '&amp;') | replace('"', '&quot;') }}{%- endmacro %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '[a]<open>think<end>' + (m.reasoning_content or '') + '<close>think<end>' }}
        {{- '<open>say<end>' + (m.content or '') + '<close>say<end>' }}
        {%- if m.tool_calls %}{{- '<open>tools<end>' }}
        {%- for call in m.tool_calls %}
            {{- '<open>call tool="' + attr(call.function.name) + '" index="' + (loop.index | string) + '"<end>' }}
            {%- if call.function.arguments is string %}
            {{- '<open>json type="object"<end>' + call.function.arguments + '<close>json<end>' }}
            {%- else %}{%- for k, v in call.function.arguments.items() %}
            {{- '<open>arg key="' + attr(k) + '" type="' + ('string' if v is string else 'json') + '"<end>' }}
            {{- (v if v is string else v | tojson) + '<close>arg<end>' }}
            {%- endfor %}{%- endif %}{{- '<close>call<end>' }}
        {%- endfor %}{{- '<close>tools<end>' }}{%- endif %}{{- '<close>message<end>[e]' }}
    {%- else %}{{- '[' + m.role[0] + ']' + (m.content or '') + '[e]' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[a]<open>think<end>' }}{%- endif %}"""
)
CHANNELS = (
    _TOOLS
    + """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- if m.reasoning_content %}
            {{- '<start>assistant<channel>analysis<message>' + m.reasoning_content + '<end>' }}
        {%- endif %}
        {%- if m.tool_calls %}{%- set f = m.tool_calls[0].function %}
            {{- '<start>assistant to=functions.' + f.name + '<channel>commentary json<message>' }}
            {{- (f.arguments | tojson) + '<call>' }}
        {%- else %}{{- '<start>assistant<channel>final<message>' + m.content + '[e]' }}{%- endif %}
    {%- else %}{{- '<start>' + m.role + '<message>' + m.content + '<end>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start>assistant' }}{%- endif %}"""
)
ADDRESSED = (
    _TOOLS
    + """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- if m.reasoning_content %}
            {{- '<start>assistant to=self<message>' + m.reasoning_content + '<end>' }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}{%- set f = call.function %}
            {{- '<start>assistant to=' + f.name + '<message><calls>\\n<f:call name="' + f.name + '">\\n' }}
            {%- for k, v in f.arguments.items() %}
            {{- '<f:arg name="' + k + '">' + (v if v is string else v | tojson) + '</f:arg>\\n' }}{%- endfor %}
            {{- '</f:call>\\n</calls>' + ('[e]' if loop.last else '<end>') }}
        {%- else %}{{- '<start>assistant to=all<message>' + m.content + '[e]' }}{%- endfor %}
    {%- else %}{{- '<start>' + m.role + '<message>' + m.content + '<end>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start>assistant' }}{%- endif %}"""
)

TRAILED = (
    "{{- m.content or '' }}"
    + _CALLS
    + """{%- if m.content or not loop.first %}{{- '\\n' }}{%- endif %}
    {{- '<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}{{- '\\n' }}"""
)
DSML = (
    _SAY
    + "{%- if m.tool_calls %}{{- '\\n\\n<<ml>calls>\\n' }}"
    + _CALLS
    + """{{- '<<ml>invoke name="' + f.name + '">\\n' }}"""
    + _ARGS
    + """{{- '<<ml>parameter name="' + k + '" string="' + ('true' if v is string else 'false') + '">' + """
    + _V
    + """ + '</<ml>parameter>\\n' }}{%- endfor %}{{- '</<ml>invoke>\\n' }}{%- endfor %}
    {{- '</<ml>calls>' }}{%- endif %}"""
)
NESTED = (
    """{%- macro inner(v) %}{%- if v is mapping %}
    {%- for k, i in v.items() %}{{- '<ns><' + k + '>' }}{{- inner(i) }}{{- '<ns></' + k + '>' }}{%- endfor %}
    {%- elif v is string or v is number and v is not boolean %}{{- v }}{%- elif v is boolean %}{{- v | tojson }}
    {%- elif v is not none %}{%- for i in v %}{{- '<ns><item>' }}{{- inner(i) }}{{- '<ns></item>' }}{%- endfor %}
    {%- endif %}{%- endmacro %}"""
    + _SAY
    + "{%- if m.tool_calls %}{{- '\\n<ns><calls>\\n' }}"
    + _CALLS
    + """{{- '<ns><invoke name="' + f.name + '">' }}{{- inner(f.arguments) }}{{- '<ns></invoke>\\n' }}{%- endfor %}
    {{- '<ns></calls>' }}{%- endif %}"""
)
LINES = (
    "{%- if m.tool_calls %}{{- '<calls>\\n' }}"
    + _CALLS
    + """{{- '{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n' }}{%- endfor %}
    {{- '</calls>' }}{%- else %}{{- m.content }}{%- endif %}"""
)
NAME_AS_KEY = (
    _SAY
    + "{%- if m.tool_calls %}{{- '<calls>[' }}"
    + _CALLS
    + """{{- '{"' + f.name + '": ' + (f.arguments | tojson) + '}' }}
    {%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']</calls>' }}{%- endif %}"""
)
ID_FIRST = (
    "{%- if m.tool_calls %}{{- '<calls>' }}"
    + _CALLS
    + """{{- '<call>' + call.id + '<name>' + f.name + '<args>' + (f.arguments | tojson) + '</call>' }}
    {%- endfor %}{%- else %}{{- '<say>' + m.content + '<end>' }}{%- endif %}"""
)

_THINKS = ("<think>", "</think>")


@dataclass(frozen=True)
class Family:
    """A template and the tokens it needs.

    Args:
        grammar: How the certificate calls what must be recognised.
        spelled: Where markers are ordinary text: content with this in it is left out, as it may spell one.
        max_calls: How many calls one message may carry.
        text_beside_calls: Whether content is kept beside calls.
        writes_ids: Whether call ids are written.
        types_inside: Whether the text tells the type of a value inside of an object or a list.
    """

    name: str
    template: str
    tokens: tuple[str, ...]
    grammar: str
    max_calls: int = 3
    text_beside_calls: bool = True
    writes_ids: bool = False
    stops: tuple[str, ...] = ("[e]",)
    reasoning: bool = True
    spelled: str | None = None
    types_inside: bool = True


def framed_by(assistant: str) -> str:
    """A template that writes assistant messages so."""
    return _FRAME.replace("%(assistant)s", assistant)


_TAGS = ("<tool_call>", "</tool_call>")
_ARG = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_SECTION = ("<calls>", "</calls>", "<call>", "</call>", "<sep>")
FAMILIES = (
    Family("hermes", framed_by(HERMES), _TAGS, "json in <tool_call>…</tool_call>"),
    Family("hermes_as_text", framed_by(HERMES), (), "json in <tool_call>…</tool_call> (plain text)", spelled="<"),
    Family("opened_once", framed_by(OPENED_ONCE), _TAGS, "json in <tool_call>…</tool_call>"),
    Family("coder", framed_by(CODER), _TAGS, "xml parameters in <tool_call>…</tool_call>"),
    Family("pythonic_coder", framed_by(PYTHONIC_CODER), _TAGS, "xml parameters in <tool_call>…</tool_call>"),
    Family(
        "quoted_tags",
        framed_by(QUOTED_TAGS),
        (),
        'xml parameters in <call name="…</call> (plain text)',
        spelled="<",
    ),
    Family("invoke", framed_by(INVOKE), ("<calls>", "</calls>"), "xml parameters in <calls>…</calls>"),
    Family("key_value", framed_by(KEY_VALUE), (*_TAGS, *_ARG), "key/value tags in <tool_call>…</tool_call>"),
    Family(
        "tight_key_value",
        framed_by(TIGHT_KEY_VALUE),
        (*_TAGS, *_ARG, "<sep>"),
        "key/value tags in <tool_call>…</tool_call>",
    ),
    Family("trailed", framed_by(TRAILED), _TAGS, "json in <tool_call>…</tool_call>", reasoning=False),
    Family("typed_tags", framed_by(DSML), ("<ml>",), "typed xml parameters in <<ml>calls>…</<ml>calls>"),
    Family(
        "nested",
        framed_by(NESTED),
        ("<ns>",),
        "nested tags in <ns><calls>…<ns></calls>",
        types_inside=False,
    ),
    Family(
        "lines",
        framed_by(LINES),
        ("<calls>", "</calls>"),
        "json lines in <calls>…</calls>",
        text_beside_calls=False,
        reasoning=False,
    ),
    Family(
        "name_as_key",
        framed_by(NAME_AS_KEY),
        ("<calls>", "</calls>"),
        "json list of {name: arguments} in <calls>…</calls>",
    ),
    Family(
        "id_first",
        framed_by(ID_FIRST),
        ("<calls>", "<call>", "</call>", "<name>", "<args>", "<say>", "<end>"),
        "name + json in <call>…</call>",
        text_beside_calls=False,
        writes_ids=True,
        reasoning=False,
    ),
    Family("section", framed_by(SECTION), _SECTION, "name + json in <call>…</call>"),
    Family("ids", framed_by(IDS), _SECTION, "call id + json in <call>…</call>", writes_ids=True),
    Family("numbered", framed_by(NUMBERED), _SECTION, "call id + json in <call>…</call>", writes_ids=True),
    Family(
        "framed",
        framed_by(FRAMED),
        ("<act>", "</act>", "<say>", "</say>"),
        "json list in <act>…</act>",
        text_beside_calls=False,
        reasoning=False,
    ),
    Family(
        "json_list",
        framed_by(JSON_LIST),
        ("[TOOL_CALLS]",),
        "json list in [TOOL_CALLS]…",
        text_beside_calls=False,
        writes_ids=True,
        reasoning=False,
    ),
    Family("name_args", framed_by(NAME_ARGS), ("[TOOL_CALLS]", "[ARGS]"), "name + json in [TOOL_CALLS]…"),
    Family(
        "name_id_args",
        framed_by(NAME_ID_ARGS),
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        "name + json in [TOOL_CALLS]…",
        writes_ids=True,
    ),
    Family(
        "bare",
        framed_by(BARE),
        (),
        "bare json with 'name' and 'parameters'",
        max_calls=1,
        text_beside_calls=False,
        reasoning=False,
    ),
    Family(
        "plain_tags",
        framed_by(PLAIN_TAGS),
        (),
        "name + json in <function=…</function> (plain text)",
        spelled="<",
    ),
    Family("python", framed_by(PYTHON), ("<calls>", "</calls>"), "python calls in <calls>…</calls>"),
    Family("python_as_text", framed_by(PYTHON), (), "python calls in <calls>…</calls> (plain text)", spelled="<"),
    Family(
        "bare_python",
        framed_by(BARE_PYTHON),
        (),
        "bare python calls",
        text_beside_calls=False,
        reasoning=False,
    ),
    Family(
        "framed_text",
        framed_by(FRAMED_TEXT),
        ("<msg>", "<end>", *_TAGS),
        "json in <tool_call>…</tool_call>",
        reasoning=False,
    ),
    Family(
        "recipients",
        RECIPIENTS,
        ("<to>", "<msg>"),
        "messages to recipients (all is content)",
        reasoning=False,
    ),
    Family(
        "recipients_as_text",
        RECIPIENTS_AS_TEXT,
        ("<to>",),
        "messages to recipients (all is content) (plain text)",
        reasoning=False,
        spelled=">>>",
    ),
    Family(
        "quoted", framed_by(QUOTED), ("<q>", "<call>", "</call>"), "fields with quote markers in <call>…</call>"
    ),
    Family(
        "addressed",
        ADDRESSED,
        ("<start>", "<message>", "<end>"),
        "channels (self is reasoning, calls to=…, xml parameters)",
        text_beside_calls=False,
    ),
    Family(
        "elements",
        ELEMENTS,
        ("<open>", "<close>", "<end>"),
        "elements (think is reasoning, typed xml parameters in tools)",
    ),
    Family(
        "channels",
        CHANNELS,
        ("<start>", "<channel>", "<message>", "<end>", "<call>"),
        "channels (analysis is reasoning, calls to=functions.…)",
        max_calls=1,
        text_beside_calls=False,
        stops=("[e]", "<call>"),
    ),
)


@cache
def family_renderer(family: Family) -> Renderer:
    """The renderer of one family, over single bytes and the family's own tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    frame = ("[s]", "[u]", "[t]", "[a]", "[e]")
    added = (*frame, *_THINKS, *family.tokens)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in added])
    tokenizer = Tokenizer(backend, {}, family.name)
    stops = tuple(backend.token_to_id(text) for text in family.stops)
    return make_renderer(tokenizer, ChatTemplate(family.template), stops, family.name)


UNQUOTED = Family(
    "unquoted_python",
    framed_by(UNQUOTED_PYTHON),
    (),
    "bare python calls (strings without quotes)",
    text_beside_calls=False,
    reasoning=False,
)
"""What it writes cannot always be told apart, so it has tests of its own."""
