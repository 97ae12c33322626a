"""Templates of task files: the text that lm-eval's own environment gives, and no way out, in neither space nor time."""

import time
from copy import copy

import pytest
from jinja2 import BaseLoader, Environment, StrictUndefined
from lm_eval import utils

from inheritune_lit.evaluation import task_files as templates

DOC = {"q": "a hello", "c": ["a", "b"], "n": 331_000_000, "t": "x" * 5000}
HARMLESS = [
    "{{q}} {{c.index('b')}} {{n*2}} {{n+1}} {{q+'x'}} {{q~n~'z'}} {{q*3}} {{'%s and %d' % (q,n)}}\n",
    "{{ q|replace('l','kk',1) }}{{ q.replace('a', t) }}{{ c|map('upper')|list }}{{ c + ['z'] }}{{ q[::-1] }}",
    "{% macro f(x) %}<{{x}}>{% endmacro %}{{ f(1) ~ f('y') }}{% for a in c %}{{loop.index}}{{a}}{% endfor %}",
    "{{ '{:,} {:>5}'.format(n, 2) }}{{ m|default(20000000) }}{{ c|join(', ') }}{{ 2**10 }}{{ c|tojson }}",
    "{% set x %}{{ q }}{% endset %}{{ x|length }}{{ t.split('x')|length }}{{ ['{', '}']|join }}",
]
HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ c|map(attribute='__class__')|list ~ ('%s'|format(q)).__class__ }}",
    "{{ '{0.__class__.__init__}'.format(q) }}",
    "{% include '/etc/passwd' %}",
    "{{ 'x' * 10**10 }}",
    "{{ c * 10**10 }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'|center(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ lipsum(n=10**8) }}",
    "{{ 9 ** (9 ** (9 ** 9)) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ ('a' * 40 + 'b')|regex_replace('(a+)+$', '') }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    *(
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}" + grow + "{% endfor %}{{ ns.x }}"
        for grow in (
            "{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.x = ns.x + ns.x %}",
            "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
            "{% set ns.x = [ns.x, ns.x]|join %}",
            "{% set ns.x = ''.join([ns.x, ns.x]) %}",
            "{% set ns.x = ns.x.replace('a', ns.x) %}",
            "{% set ns.x = ns.x|replace('a', ns.x) %}",
        )
    ),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(templates, "_SECONDS", 1)
    templates.use_sandbox()


@pytest.mark.parametrize("text", HARMLESS)
def test_the_text_is_lm_evals(text):
    plain = Environment(loader=BaseLoader, undefined=StrictUndefined, keep_trailing_newline=True)
    assert utils.apply_template(text, copy(DOC)) == plain.from_string(text).render(**DOC)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_runs_is_read_or_grows(text):
    start = time.monotonic()
    with pytest.raises(Exception):  # noqa: B017 (whatever it is, it becomes a line that names the task)
        utils.apply_template(text, DOC)
    assert time.monotonic() - start < 5
