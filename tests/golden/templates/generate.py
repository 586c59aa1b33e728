"""Writes expressions.json and prompts.json, what candle-llm's chat templates are held against.

Needs transformers and jinja2; the templates are rendered by transformers' own environment.

    python generate.py

expressions.json: small templates and what they come to over one conversation; null where Python refuses or fails.
prompts.json: for each template in models/ and each conversation of conversations.json, without tools and with them, the prompt, or
null where the template refuses the conversation. Conversations have OpenAI's form and are put into that which transformers documents:
arguments are objects, a turn that only calls has an empty content. What a template wants otherwise, FORMS says.
"""

import copy
import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a < b & 'c' \"d\" é\n"},
    {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nBecause."},
    {"role": "user", "content": "  go on  "},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object", "properties": {
        "items": {"type": "array", "items": {"type": "string"}}, "x": {"type": "number", "default": 1.0, "enum": [1, 2.5, None, True]}}, "required": ["x"]}}},
]

EXPRESSIONS = r"""
{{ ['a', "b'c", 1, 1.0, none, true, undefined_name is defined] }}
{{ {'a': {'b': [1, 2]}, 'c': None} }}
{{ {1: 'x', 'b': 2} }}
{{ '7.9' | int }}|{{ '1_0' | int }}|{{ 'x' | int(5) }}|{{ none | float }}|{{ 'x' | float(2.5) }}|{{ true | int }}
{{- 'a' ~ none -}} x {%- set y = 'b' ~ true -%} {{ y }}{%+ if 'c' ~ y %}z{%- endif +%}
{{ none }}|{{ true }}|{{ false }}|{{ None }}|{{ undefined_name }}|{{ [] }}|{{ {} }}
{{ 1.0 }}|{{ 0.1 + 0.2 }}|{{ 1e16 }}|{{ 1e-05 }}|{{ 100000.0 * 100000 }}|{{ 7 / 2 }}|{{ 7 // 2 }}|{{ 2 ** 10 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x'] ~ {'k': none} ~ undefined_name }}
{{ 'n: ' ~ messages | length ~ '!' }}
{{ 1 + 2 ~ 3 + 4 if false else 'x' ~ 2 * 3 ~ -1 }}
{{ 'a' ~ ('b' ~ ('c' ~ [true])) ~ {'d': 'e' ~ none}['d'] }}
{{ 'x' ~ messages[1:][0].role ~ messages[-1]['role'] ~ tools[0].function.name | upper }}
{{ - 3 ~ 'a' }}|{{ 4 - 3 ~ '' | int }}
{{ (- 3) ~ 'a' }}|{{ -3 ~ 'a' }}|{{ 2 * -3 ~ 'a' }}
{{ (not true) ~ '' }}|{{ 'a' ~ 'b' in 'xab' }}|{{ 'a' ~ 'b' == 'ab' and 'x' ~ none != 'x' }}
{% for x in [1, 2] if 'v' ~ x == 'v2' %}{{ 'x' ~ loop.index ~ loop.last }}{% endfor %}
{% set x = 'a' ~ none %}{{ x }}{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.role[0] %}{% endfor %}{{ ns.t }}
{% macro m(a, b='x' ~ none) %}{{ a ~ b }}{% endmacro %}{{ m([1]) }}{{ m(true, b='z' ~ 1) }}
{{ "a" "b" ~ 'c' }}
{{ '~' ~ "%}" ~ '{{' }}{# ~ {{ %} #}{% raw %}{{ a ~ b }}{% endraw %}
{{ [1, 2] | string }}|{{ none | string }}|{{ true | string | length }}|{{ 1.50 | string }}
{{ [1, none, 'a', [2]] | join(', ') }}|{{ messages | join('/', attribute='role') }}|{{ ['a', 'b'] | join }}
{{ ', '.join(['a', 'b']) }}|{{ '-'.join(messages | map(attribute='role')) }}
{{ '%s-%02d' % ('x', 3) }}|{{ '%s' % [1, 'a'] }}|{{ '%s' % none }}|{{ '%r' % 'a' }}|{{ '%5.2f|%-5s|%+d|%05d' % (3.14159, 'ab', 5, -42) }}
{{ '%x %X %o %#x %c %e %g %g %%' % (255, 255, 8, 255, 'q', 12345.678, 0.0001, 1e10) }}
{{ '%(a)s and %(b)d' % {'a': 'x', 'b': 2} }}
{{ '%s %s' % ('a', ['b']) }}|{{ 'a%s' % ('b') ~ 'c' }}|{{ '%d%%' % 50 }}|{{ '%5s|%.2s|%*d' % ('a', 'abc', 4, 7) }}
{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7 % -3 }}|{{ 7.5 % 2 }}|{{ 10 % 4 * 2 % 3 }}|{{ 2 * 7 % 4 }}
{% if loop is undefined %}{% for i in range(4) %}{{ i % 2 == 0 }}{% endfor %}{% endif %}
{{ '%s, %s' | format('a', [1]) }}|{{ '%d' | format(3) }}
{{ '%s %s' % ('a',) }}
{{ '%s' % ('a', 'b') }}
{{ '%d' % 'a' }}
{{ tools[0] | tojson }}
{{ tools[0].function | tojson(ensure_ascii=True) }}
{{ tools | tojson(indent=4) }}|{{ [] | tojson(indent=2) }}|{{ {'a': {}} | tojson(indent=1) }}
{{ {'b': 1, 'a': [2, 3]} | tojson(separators=(',', ':'), sort_keys=True) }}|{{ [1, 2] | tojson(separators=[';', '='], indent=2) }}
{{ {'b': 1, 'a': {'d': 2, 'c': 3}} | tojson(sort_keys=true) }}|{{ 'é\n\t"\\<>&\u0001' | tojson }}|{{ [1.0, 1e16, 1e-7, none, true] | tojson }}
{{ messages[1].content | tojson }}|{{ '🙂' | tojson(ensure_ascii=true) }}|{{ (1, 2) | tojson }}|{{ 'a' | tojson(true) }}
{{ messages[1:3] | tojson }}|{{ messages | map(attribute='role') | list | tojson }}|{{ undefined_name | default('x') | tojson }}
{{ undefined_name | tojson }}
{{ none is iterable }}|{{ [] is iterable }}|{{ 'a' is iterable }}|{{ {} is iterable }}|{{ 1 is iterable }}|{{ undefined_name is iterable }}|{{ none is none }}
{{ [] is sequence }}|{{ 'a' is sequence }}|{{ {} is sequence }}|{{ 1 is sequence }}|{{ none is sequence }}|{{ messages[1:] is sequence }}
{{ {} is mapping }}|{{ [] is mapping }}|{{ 'a' is string }}|{{ 1 is string }}|{{ none is mapping }}|{{ undefined_name is mapping }}|{{ undefined_name is string }}
{{ true is number }}|{{ 1 is number }}|{{ 1.0 is number }}|{{ 1 is integer }}|{{ true is integer }}|{{ 1.0 is float }}|{{ true is boolean }}|{{ 0 is boolean }}
{{ none is defined }}|{{ undefined_name is defined }}|{{ messages[0].nothing is defined }}|{{ messages[0].nothing is none }}|{{ raise_exception is callable }}|{{ 1 is callable }}
{{ true is true }}|{{ 1 is true }}|{{ false is false }}|{{ 2 is even }}|{{ 3 is odd }}|{{ 9 is divisibleby 3 }}|{{ 1 is eq 1 }}|{{ 'a' is in ['a'] }}|{{ 'a' is not in ['a'] }}
{{ documents is defined }}|{{ documents is none }}|{{ custom is defined }}
{%- if documents is iterable and documents | length > 0 %}D{% else %}none{% endif %}
{{ undefined_name | length }}|{{ '' | length }}|{{ {} | count }}|{{ 'é🙂' | length }}
{{ none | length }}
{{ 1 | length }}
{{ 'x' in undefined_name }}|{{ 'content' in messages[0] }}|{{ 'x' not in messages[0] }}|{{ 1 in [1] }}|{{ 'ab' in 'cab' }}
{{ 'x' in none }}
{{ undefined_name.a }}
{{ undefined_name + 'a' }}
{{ 'a' + 1 }}
{{ [1] + [2] }}|{{ 'a' * 3 }}|{{ [0] * 2 }}|{{ [1, 2] == [1, 2] }}|{{ 1 == 1.0 }}|{{ 'a' < 'b' < 'c' }}|{{ 1 < 2 > 1 }}
{% set m = {'items': {'type': 'x'}, 'get': 1} %}{{ m.items.type is defined }}|{{ m['items'].type }}|{{ m.items is iterable }}|{{ m.get is none }}|{{ m.get('get') }}|{{ m.items is callable }}
{% set ns = namespace(items=[1]) %}{% set ns.items = ns.items + [2] %}{{ ns.items }}|{{ ns.items | length }}
{{ tools[0].function.parameters.properties.items() | list | length }}|{% for k, v in tools[0].function.parameters.properties.items() %}{{ k }}={{ v.type }};{% endfor %}
{% for k, v in tools[0].function | items %}{{ k }};{% endfor %}|{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}
{{ {'a': 1}.get('a') }}|{{ {'a': 1}.get('b') }}|{{ {'a': 1}.get('b', 'd') }}|{{ {'a': 1}.keys() | list }}|{{ {'a': 1}.values() | list }}|{{ {'a': 1}.copy() }}
{% for k in {'get': 1, 'items': 2}.items() %}{{ k[0] }}{% endfor %}|{{ messages[0].get('role') }}|{{ messages[0].get('x') is none }}
{{ 'a,b,,c'.split(',') }}|{{ 'a b  c '.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ ' a b c'.split(none, 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ 'a b c'.rsplit(maxsplit=1) }}|{{ 'abc'.split('x')[-1] }}|{{ ''.split() }}|{{ ''.split(',') }}|{{ ' a  b '.rsplit() }}
{{ messages[2].content.split('</think>')[-1].lstrip('\n') }}|{{ messages[2].content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}
{{ '  xx '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcab'.lstrip('ba') }}|{{ 'abc\n'.rstrip() }}|{{ '  a ' | trim }}|{{ 'xax' | trim('x') }}|{{ '\u001ca\u3000'.strip() }}
{{ "they're bill's".title() }}|{{ 'aBC dE'.capitalize() }}|{{ 'Ab'.swapcase() }}|{{ 'aé'.upper() }}|{{ 'ÀB'.lower() }}|{{ 'ab cd' | title }}|{{ 'aB' | capitalize }}
{{ 'abc'.startswith('a') }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('bc') }}|{{ 'abc'.startswith('') }}
{{ 'aébéc'.find('é') }}|{{ 'aébéc'.rfind('é') }}|{{ 'abc'.find('x') }}|{{ 'aébéc'.find('é', 2) }}|{{ 'abcabc'.find('a', 1, 3) }}|{{ 'aéb'.index('b') }}|{{ 'a'.index('a') }}
{{ 'abc'.index('x') }}
{{ 'aXbX'.replace('X', '-') }}|{{ 'aXbX'.replace('X', '-', 1) }}|{{ 'aaa'.count('a') }}|{{ 'a-b-c'.partition('-') | list }}|{{ 'a-b-c'.rpartition('-') | list }}|{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('c') }}
{{ '5'.zfill(3) }}|{{ '-5'.zfill(4) }}|{{ 'a'.ljust(3, '.') }}|{{ 'a'.rjust(3) }}|{{ 'a'.center(4, '*') }}|{{ 'ab'.center(5, '*') }}
{{ ''.isdigit() }}|{{ '12'.isdigit() }}|{{ 'a1'.isalnum() }}|{{ 'ab'.isalpha() }}|{{ ' '.isspace() }}|{{ ''.isspace() }}|{{ 'a1'.islower() }}|{{ 'A1'.isupper() }}|{{ '1'.islower() }}
{{ 'a\nb\r\nc'.splitlines() }}|{{ 'a\nb'.splitlines(true) }}|{{ '{} {}'.format('a', none) }}|{{ '{0:>3}|{a}'.format('x', a=[1]) }}|{{ '{:.2f}'.format(1.239) }}
{{ [1, 2, 1].count(1) }}|{{ ['a', 'b'].index('b') }}|{{ [1].copy() }}
{% set x = [] %}{% set _ = x.append(1) %}{{ x }}
{% set x = {} %}{% set _ = x.update({'a': 1}) %}{{ x }}
{{ messages[::-1][0].role }}|{{ messages[1:][0].role }}|{{ messages[:-1] | length }}|{{ 'abcdef'[1:-1] }}|{{ 'abc'[::-1] }}|{{ 'abcdef'[::2] }}|{{ [1, 2, 3, 4][1::2] }}|{{ messages[-1].role }}
{{ messages[9] is defined }}|{{ messages[9] }}|{{ 'abc'[0] }}|{{ 'abc'[-1] }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | join(',') }}|{{ [1, 2, 3] | select('odd') | list }}|{{ ['a', 'b'] | map('upper') | join }}
{{ messages | map(attribute='content') | first | trim }}|{{ [3, 1, 2] | sort }}|{{ [1, 2] | last }}|{{ [1, 2] | reverse | list }}|{{ 'abc' | reverse }}|{{ [1, 1, 2] | unique | list }}|{{ [1, 2, 3] | sum }}|{{ [1, 2] | max }}
{{ '3' | int + 1 }}|{{ 'x' | int }}|{{ '1.5' | float }}|{{ 3.7 | int }}|{{ 2.6 | round }}|{{ 3.14159 | round(2) }}|{{ -3 | abs }}|{{ 'x' | default('y') }}|{{ '' | default('y', true) }}|{{ undefined_name | d('z') }}
{{ 'a b' | replace(' ', '_') }}|{{ 'ab' | list }}|{{ {'a': 1} | list }}|{{ 'x' | indent(2, true) }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(width=2, first=true) }}
{{ '\n' | indent(4, first=true) }}|{{ 'a\n\nb' | indent(2, false, true) }}|{{ 'a\nb\n' | indent('> ') }}|{{ '' | indent }}
{{ range(3) | list }}|{{ dict(a=1, b=none) }}|{{ namespace(a=1).a }}|{% for i in range(2, 8, 3) %}{{ i }}{% endfor %}
{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if loop.nextitem is defined }};{% endfor %}
{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}
{% for x in [] %}a{% else %}empty{% endfor %}|{% for x in undefined_name %}a{% endfor %}|{% for a, b in [(1, 2)] %}{{ a + b }}{% endfor %}|{{ loop is defined }}
{% generation %}a{% endgeneration %}|{%- generation -%} b {%- endgeneration -%} |{%+ generation %} c {% endgeneration +%}
{% for m in messages %}{% if m.role == 'assistant' %}{%- generation %}{{ m.content | length }}{{ loop.index }}{%- endgeneration %}{% endif %}{% endfor %}
{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}
{% if true -%}   a   {%- endif %}   b{{- ' c ' -}}   d
{% filter upper %}a{{ 'b' ~ none }}{% endfilter %}|{% with a = 1 ~ none %}{{ a }}{% endwith %}|{% set b %}x{{ 1.0 }}{% endset %}{{ b }}
{% call(x) m2() %}{% endcall %}
{% macro w(t) %}<{{ caller(t) }}>{% endmacro %}{% call(x) w('a' ~ none) %}{{ x ~ x }}{% endcall %}
{{ 'a' if undefined_name }}|{{ 'a' if not undefined_name else 'b' }}|{{ (undefined_name or 'c') ~ '' }}|{{ none or 0 }}
{{ bos_token ~ eos_token ~ add_generation_prompt }}|{{ '\n' in 'a\nb' }}|{{ "tab\there \x41 \u00e9 \' \q" }}
{{ 1_000 }}|{{ 1e3 }}|{{ 0x1f }}|{{ 12345678901234567890 }}|{{ 2 ** 70 }}
{% set a, b = 1, 'x' ~ 2 %}{{ a }}{{ b }}|{% set c = (1, [2]) %}{{ c[1] }}
{{ joiner(', ') is defined }}{% set j = joiner('|') %}{% for i in [1, 2] %}{{ j() }}{{ i }}{% endfor %}|{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}
{% for x in 'abc' %}{{ loop.cycle('-', '+') }}{{ x }}{% endfor %}|{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}
{% for r, ms in messages | groupby('role') %}{{ r }}={{ ms | length }};{% endfor %}
{{ [1, 2, 3, 4, 5] | batch(2) | list }}|{{ [1, 2, 3] | batch(2, 0) | list }}
{{ messages | selectattr('tool_calls') | list | length }}|{{ messages | selectattr('tool_calls', 'defined') | list }}|{{ messages | map(attribute='nothing', default='-') | join }}
{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.seen }}
{% macro a(x, *args, **kwargs) %}{{ x }}{% endmacro %}{{ a(1) }}
{% macro list_of(xs, sep=', ') -%}{%- for x in xs -%}{{ x ~ (sep if not loop.last else '') }}{%- endfor -%}{%- endmacro %}[{{ list_of([1, none, 'a']) }}][{{ list_of(['b'], sep=';') }}]
{{ {'a': 1, 'b': [2]}['b'][0] }}|{{ {'a': {'b': 'c'}}.a.b }}|{{ ({'a': 1} | items | list)[0][0] }}|{{ {'x': 1}.x is defined and {'x': 1}['y'] is not defined }}
{{ (messages | first).role }}|{{ (messages | last)['content'] | trim | upper }}|{{ (messages | length) > 2 and not false }}
{%- set texts = messages | map(attribute='content') | map('trim') | list -%}{{ texts | map('length') | list }}{{ texts[0] in texts }}
{{ '%.3f' % 2 }}|{{ '%s' % 1.0 }}|{{ '%d' % 3.9 }}|{{ '%i' % true }}|{{ '%-6s|' % 'é' }}|{{ '%06.2f' % -1.5 }}|{{ '%E' % 0.00012 }}|{{ '% d' % 7 }}
{{ messages[0] == {'role': 'system', 'content': 'Be brief.'} }}|{{ messages[1] == messages[-1] }}|{{ [1] in [[1], [2]] }}
{{ messages is iterable and messages is sequence and messages is not string and messages is not mapping }}|{{ messages[0] is mapping }}
{{ 'a' < 'b' }}|{{ [1, 2] < [1, 3] }}|{{ 1 <= 1.0 }}|{{ not '' }}|{{ not [] }}|{{ not {} }}|{{ not 0.0 }}|{{ 'x' and 'y' }}|{{ '' or none }}
{{ raise_exception('no: ' ~ [none]) }}
{{ nosuch() }}
{{ 'a' | nosuch }}
{{ messages[0].nosuch() }}
{{ 'a' is nosuch }}
{{ messages[0].content.nosuch }}|{{ messages.nosuch }}|{{ 'x'.y is defined }}
""".strip("\n").split("\n")

# Those of several lines.
LINES = [
    "{% if true %}\nx\n{% endif %}\ny\n",
    "  {% for m in messages %}\n    {{ m.role }}\n  {% endfor %}\n\n",
    "{%- for m in messages -%}\n\n {{ m.role }} \n\n{%- endfor -%}\n",
    "{{ [1,\n 2] ~ '\n' ~ {'a':\n none} }}\n\n",
    "a\n\n{# c #}\n  {# d #}  \n{%- set x = 1 %}\nb",
]


def render(template: str, messages: list, tools: list | None, **names) -> str | None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "documents": None, "add_generation_prompt": True} | names
    try:
        return _compile_jinja_template(template).render(messages=messages, tools=tools, **names)
    except Exception as error:  # noqa: BLE001: whatever it is, there is no prompt
        print(f"{template[:60]!r}: {type(error).__name__}: {error}")
        return None


# What templates want otherwise, without tools and with them.
TAGGED = {"tools": "content", "calls": "content"}
FORMS = {
    "chatml": ({"calls": "content"}, TAGGED),
    "command-r": ({}, {}),
    "deepseek-r1-distill": ({"content": None, "arguments": "text", "beside_text": "turns"}, TAGGED),
    "functionary": ({"arguments": "text"}, {"arguments": "text"}),
    "gemma2": ({"calls": "content", "results": "content", "system": "content"}, TAGGED | {"results": "content", "system": "content"}),
    "gpt-oss": ({"several": "turns"}, {"several": "turns"}),
    "granite": ({"calls": "content"}, {"calls": "content"}),
    "hermes": ({"calls": "content"}, {}),
    "lfm2": ({"other_arguments": "wrapped"}, {"other_arguments": "wrapped"}),
    "llama3": ({"several": "turns"}, {"several": "turns"}),
    "mistral": ({"ids": "short"}, {"ids": "short"}),
    "phi4-mini": ({"calls": "content"}, {"calls": "content", "tools": "system"}),
    "qwen3": ({}, {}),
    "qwen3-coder": ({"other_arguments": "wrapped"}, {"other_arguments": "wrapped"}),
}
INJECTED = """# Tools

You may call one or more functions to assist with the user's request. Their signatures, one per line, are within <tools></tools> tags:
<tools>
%s
</tools>

For each function call, return a JSON object with the function's name and arguments within <tool_call></tool_call> tags:
<tool_call>
{"name": <function-name>, "arguments": <arguments-object>}
</tool_call>
Results are given back within <tool_response></tool_response> tags."""


def is_json(text: str) -> bool:
    try:
        json.loads(text)
        return True
    except ValueError:
        return False


def short(id: str) -> str:
    """Nine letters and digits: FNV-1a in base 62."""
    if len(id) == 9 and id.isalnum():
        return id
    value, digits = 0xCBF29CE484222325, ""
    for byte in id.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    for _ in range(9):
        value, digit = divmod(value, 62)
        digits += "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit]
    return digits


def shape(messages: list, tools: list, form: dict) -> list:
    """The conversation as the template wants it."""
    out, calls, number = [], [], 0
    head = "\n\n".join(m["content"] for m in messages[:1] if m["role"] == "system")
    rest = messages[1:] if head else messages
    if tools and form.get("tools") == "content":
        listed = INJECTED % "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        head = f"{head}\n\n{listed}" if head else listed
    id_of = short if form.get("ids") == "short" else str
    pending: list[dict] = []

    def write_results(results: list) -> None:
        text = "\n".join(f"<tool_response>\n{result['content']}\n</tool_response>" for result in results)
        if not text:
            return
        if out and out[-1]["role"] == "user":
            out[-1]["content"] += ("\n" if out[-1].get("results") else "\n\n") + text
            out[-1]["results"] = True
        else:
            out.append({"role": "user", "content": text, "results": True})

    def flush() -> None:
        """Writes the pending turn of calls and its results."""
        nonlocal calls
        if calls:
            turn, turns = calls[0], [[call] for call in calls[1:]] if form.get("several") == "turns" else [calls[1:]]
            strays = [result for result in pending if not any(result is got for call in calls[1:] for got in call["results"])]
            if form.get("calls") == "content":
                texts = [turn["content"]] * bool(turn["content"])
                for call in calls[1:]:
                    arguments = call["arguments"] if is_json(call["arguments"]) else json.dumps(call["arguments"], ensure_ascii=False)
                    texts.append('<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>' % (call["name"], arguments))
                out.append({"role": "assistant", "content": "\n".join(texts)})
                turns = [calls[1:]]
            elif turn["content"] and form.get("beside_text") == "turns":
                out.append({"role": "assistant", "content": turn["content"]})
                turn = turn | {"content": ""}
            for some in turns:
                if form.get("calls") != "content":
                    written = []
                    for call in some:
                        arguments = call["arguments"]
                        if form.get("arguments") != "text":
                            parsed = json.loads(arguments) if is_json(arguments) else None
                            wrapped = {"arguments": arguments} if form.get("other_arguments") == "wrapped" else arguments
                            arguments = parsed if isinstance(parsed, dict) else wrapped
                        written.append({"id": id_of(call["id"]), "type": "function", "function": {"name": call["name"], "arguments": arguments}})
                    out.append({"role": "assistant", "content": turn["content"] or form.get("content", ""), "tool_calls": written})
                    turn = turn | {"content": ""}
                results = [(call, result) for call in some for result in call["results"]]
                if form.get("results") == "content":
                    write_results([result for _, result in results])
                else:
                    for call, result in results:
                        out.append({"role": "tool", "content": result["content"], "name": call["name"], "tool_call_id": id_of(call["id"])})
            write_results(strays)
        else:
            write_results(pending)
        calls = []
        pending.clear()

    for message in rest:
        if message["role"] == "tool":
            pending.append(message)
            by_id = [call for call in calls[1:] if call["id"] == message.get("tool_call_id")]
            by_order = [call for call in calls[1:] if not call["results"] and message.get("name", call["name"]) == call["name"]]
            for call in (by_id or by_order)[:1]:
                call["results"].append(message)
            continue
        flush()
        if message.get("tool_calls"):
            calls = [message]
            for call in message["tool_calls"]:
                number += 1
                function = call["function"]
                calls.append({"id": call.get("id", f"call{number:05}"), "name": function["name"], "arguments": function["arguments"] or "{}", "results": []})
        elif message["role"] == "user" and out and out[-1].get("results"):
            out[-1]["content"] += "\n\n" + message["content"]
        else:
            out.append(dict(message))
    flush()
    if tools and form.get("tools") == "system" and not head:
        out.insert(0, {"role": "system", "content": ""})
    if head and form.get("system") == "content":
        first = next(message for message in out if message["role"] == "user")
        first["content"] = f"{head}\n\n{first['content']}"
    elif head:
        out.insert(0, {"role": "system", "content": head})
    for message in out:
        message.pop("results", None)
    return out


def prompts() -> dict:
    data = json.loads((HERE / "conversations.json").read_text())
    all_prompts: dict = {}
    for name, forms in FORMS.items():
        default = (HERE / "models" / f"{name}.jinja").read_text()
        tool_use = HERE / "models" / f"{name}.tool_use.jinja"
        of_template = all_prompts.setdefault(name, {})
        for conversation, messages in data["conversations"].items():
            of_template[conversation] = both = {}
            for key, tools, form in (("plain", [], forms[0]), ("tools", data["tools"], forms[1])):
                source = tool_use.read_text() if tools and tool_use.exists() else default
                shaped = shape(copy.deepcopy(messages), tools, form)
                seen = tools if tools and form.get("tools") != "content" else None
                both[key] = render(source, shaped, seen)
    return all_prompts


def main() -> None:
    cases = [{"template": text, "expected": render(text, MESSAGES, TOOLS)} for text in EXPRESSIONS + LINES]
    write("expressions.json", {"messages": MESSAGES, "tools": TOOLS, "cases": cases})
    write("prompts.json", prompts())


def write(name: str, value: dict) -> None:
    (HERE / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
