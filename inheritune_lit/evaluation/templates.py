"""Templates of tasks: Jinja without a way to run or read anything, and with an end."""

import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined, Template, nodes
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from inheritune_lit.io.machine import handle_signals

_LONGEST = 1 << 24
"""Characters or entries of what a template makes."""
_SECONDS = 10
_HARMLESS = ("join", "format", "default", "round", "index", "count", "get", "append", "filesizeformat")
"""What takes numbers that are no sizes."""


class _OwnConcat(NodeTransformer):
    """``a ~ b`` is joined by the environment, which counts."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        parts = [self.visit(part) for part in node.nodes]
        return nodes.Call(nodes.EnvironmentAttribute("join"), parts, [], None, None, lineno=node.lineno)


class TaskTemplates(SandboxedEnvironment):
    """lm-eval's environment in a sandbox, bounded in time and size: a prompt is the work of whoever wrote its task."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        self.filters["regex_replace"] = lambda text, pattern, new, count=0: re.sub(pattern, new, text, count=count)
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _OwnConcat().visit(super()._parse(source, name, filename))
        return parsed

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Template:
        return _compiled(self, source) if isinstance(source, str) else super().from_string(source, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(part) if hasattr(part, "__len__") else part for part in (left, right)]
        if operator in ("*", "**") and all(isinstance(part, int) for part in (left, right)):
            _check_size(left.bit_length() * (right if operator == "**" else 1) + right.bit_length())
        elif operator == "*":
            _check_size(sizes[0] * sizes[1])
        elif operator == "+" and hasattr(left, "__len__"):
            _check_size(sum(sizes))
        elif operator == "%" and isinstance(left, str):
            _check_width(left)
        return super().call_binop(context, operator, left, right)

    def call(*args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        subject = getattr(args[2], "__self__", None)
        return _bounded(SandboxedEnvironment.call, 3, getattr(args[2], "__name__", ""), subject)(*args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(text := getattr(value, "__self__", None), str):
            _check_width(text)
        return super().wrap_str_format(value)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join what a template, a macro or a block has put out."""
        return "".join(_counted(parts))

    def join(self, *parts: Any) -> str:
        return self.concat(map(str, parts))


@lru_cache(maxsize=1024)
def _compiled(environment: TaskTemplates, source: str) -> Template:
    return SandboxedEnvironment.from_string(environment, source)


def use_sandbox() -> None:
    """Have lm-eval render the templates of all tasks in the sandbox."""
    from lm_eval import utils

    if not isinstance(utils.env, TaskTemplates):
        environment = utils.env = TaskTemplates()

        def apply_template(template: str, doc: dict[str, Any]) -> str:
            with time_limit(_SECONDS):
                return environment.from_string(template).render(**doc)

        utils.apply_template = apply_template


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in a block that takes longer; only the main thread can be interrupted."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"it takes longer than {seconds} s")

    with handle_signals(stop, signal.SIGALRM) as handled:
        if handled:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            if handled:
                signal.setitimer(signal.ITIMER_REAL, 0)


def _bounded(function: Callable[..., Any], own: int = 1, name: str = "", subject: Any = None) -> Callable[..., Any]:
    """A function whose numbers, such as widths and counts, and whose result have a bound.

    ``own`` are the arguments that are not a template's; ``name`` and ``subject`` are of the method that is called.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [*args[own:], *kwargs.values()]
        text = next((part for part in (subject, *args) if isinstance(part, str)), "")
        kind = name or function.__name__.removeprefix("do_")
        for value in given if kind not in _HARMLESS else []:
            if isinstance(value, int):
                _check_size(abs(value))
        if kind == "replace" and len(given) > 1:
            _check_size(text.count(str(given[-2])) * len(str(given[-1])))
        elif kind == "format":
            _check_width(text)
        result = function(*args, **kwargs)
        for value in (result, subject):
            if hasattr(value, "__len__"):
                _check_size(len(value))
        return result

    return call


def _check_width(text: str) -> None:
    """``"%999999999d"`` and ``"{:999999999}"`` are short and stand for much."""
    if re.search(r"[%{][^\s}]*?(\d{7}|\*)|\{[^{}]*:[^{}]*\{", text):
        raise OverflowError("a template asks for too wide a field")


def _check_size(size: float) -> None:
    if size > _LONGEST:
        raise OverflowError(f"a template makes more than {_LONGEST:,} characters or entries")


def _counted(parts: Iterable[str]) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part)
        _check_size(size)
        yield part
