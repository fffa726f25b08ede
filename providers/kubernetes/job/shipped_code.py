"""A function as files that plain Python runs: its source, and its arguments as JSON. Nothing is pickled.

What the function needs it must hold itself, because only its own source goes along: it imports inside, and
gets everything else as an argument. What cannot be shipped is refused with the name of what is in the way.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import math
import symtable
from importlib.resources import files
from types import FunctionType
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SOURCE_FILE = "train.py"
ARGUMENTS_FILE = "arguments.json"
RETURNED_FILE = "nighttrain_returned.py"
"""Writes the numbers that the function returns into its run."""

# A module has these whoever runs it.
_OF_EVERY_MODULE = frozenset({"__name__", "__file__", "__doc__"})
_KINDS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (inspect.iscoroutinefunction, "an async function"),
    (inspect.isasyncgenfunction, "an async generator"),
    (inspect.isgeneratorfunction, "a generator"),
)
_JSON_SCALARS = (str, int, float, bool, type(None))

# The function's own name is the only one that the shipped file defines beside this.
_MAIN = "_nighttrain_main"
_HEAD = """\
from __future__ import annotations

# As it is in the DAG file. By hand: "python {source}", with {arguments} beside it.


"""
_TAIL = """


def {main}():
    import json
    import os
    import pathlib
    import sys

    sys.stdout.reconfigure(line_buffering=True)  # so that its lines are seen while it runs
    arguments = pathlib.Path(__file__).with_name("{arguments}").read_text("utf-8")
    run_id = os.environ.get("MLFLOW_RUN_ID")  # MLflow forgets it at the first start_run()
    returned = {name}(**json.loads(arguments))
    report = pathlib.Path(__file__).with_name("{returned}")
    if report.exists():  # by hand it need not be there
        scope = {{"__name__": "{returned}"}}
        exec(compile(report.read_text("utf-8"), str(report), "exec"), scope)
        scope["report"](returned, run_id)


if __name__ == "__main__":
    {main}()
"""


def ship(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """The files that run ``function(*args, **kwargs)``: file name -> content.

    :raises ConfigurationError: the function needs more than its source, or an argument is not JSON
    """
    arguments = bind(function, args, kwargs)
    _check_arguments(arguments)
    try:
        text = json.dumps(arguments, allow_nan=False, ensure_ascii=False, indent=2)
        text.encode()
    except ValueError as error:  # also what UTF-8 cannot write
        raise ConfigurationError(_called(function), None, f"its arguments are not JSON: {error}") from error
    return {
        SOURCE_FILE: source_of(function),
        ARGUMENTS_FILE: text + "\n",
        RETURNED_FILE: _in_container("returned_metrics.py"),
    }


def bind(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, defaults: bool = False
) -> dict[str, Any]:
    """The arguments of a call by their parameters' names, also those that ``**kwargs`` takes.

    :param defaults: with the defaults of parameters that are not given
    :raises ConfigurationError: the function cannot be called so
    """
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigurationError(_called(function), None, f"cannot be called so: {error}") from error
    if defaults:
        bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def source_of(function: Callable[..., Any]) -> str:
    """The file that defines the function, and calls it with the arguments beside it when it is run.

    :raises ConfigurationError: the function needs more than its own source
    """
    checked = _plain_function(function)
    source, definition = _definition(checked)
    _check_names(checked, definition)
    head = _HEAD.format(source=SOURCE_FILE, arguments=ARGUMENTS_FILE)
    parts = {"main": _MAIN, "arguments": ARGUMENTS_FILE, "returned": RETURNED_FILE}
    return head + source + _TAIL.format(name=definition.name, **parts)


def _in_container(name: str) -> str:
    return files(f"{__package__}.in_container").joinpath(name).read_text("utf-8")


# What kind of function.


def _called(function: Any) -> str:
    return f"function {getattr(function, '__name__', type(function).__name__)}"


def _plain_function(function: Any) -> FunctionType:
    field = _called(function)
    if inspect.ismethod(function) or _in_class(function):
        raise ConfigurationError(field, None, "a method cannot be shipped: write a function")
    if not isinstance(function, FunctionType):
        raise ConfigurationError(field, type(function).__name__, "write a function with def")
    if function.__name__ == "<lambda>":
        raise ConfigurationError(field, None, "a lambda cannot be shipped: write a function with def")
    for is_kind, name in _KINDS:
        if is_kind(function):
            raise ConfigurationError(field, None, f"{name} cannot be shipped: write a plain function")
    if hasattr(function, "__wrapped__"):
        raise ConfigurationError(
            field, None, "another decorator wraps it, which is not shipped: use it inside the function"
        )
    if function.__code__.co_freevars:
        raise ConfigurationError(
            field,
            ", ".join(function.__code__.co_freevars),
            "comes from the function around it, which is not shipped: pass it as an argument",
        )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ConfigurationError(
                field, str(parameter), "arguments are shipped by name: let each parameter have one"
            )
    return function


def _in_class(function: Any) -> bool:
    around = getattr(function, "__qualname__", "").rpartition(".")[0]
    return bool(around) and not around.endswith("<locals>")


# Its source.


def _definition(function: FunctionType) -> tuple[str, ast.FunctionDef]:
    """The function's source from ``def`` on, not indented, and what it parses to."""
    field = _called(function)
    try:
        lines = inspect.getsource(function).splitlines()
    except (OSError, TypeError) as error:
        raise ConfigurationError(field, None, "its source cannot be found: define it in a file") from error
    # Under a condition, an indented definition parses as it stands.
    above = ["if True:"] if lines[0][:1].isspace() else []
    try:
        tree = ast.parse("\n".join([*above, *lines]))
    except SyntaxError as error:
        raise ConfigurationError(field, None, f"its source does not parse: {error}") from error
    found = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
    if found is None or found.name != function.__code__.co_name:
        raise ConfigurationError(field, None, "its source is not what was imported: has the file changed?")
    if found.name == _MAIN:
        raise ConfigurationError(field, None, "this name is reserved")
    return _dedented([*above, *lines], found), found


def _dedented(lines: list[str], definition: ast.FunctionDef) -> str:
    """Without decorators and common indentation; what stands inside strings stays as it is."""
    in_strings = {
        line
        for node in ast.walk(definition)
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and _is_text(node.value))
        for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }
    first = lines[definition.lineno - 1]
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join(
        lines[number - 1] if number in in_strings else _without(indent, lines[number - 1])
        for number in range(definition.lineno, (definition.end_lineno or definition.lineno) + 1)
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str | bytes)


def _without(indent: str, line: str) -> str:
    # A comment may be indented less than the code around it.
    return line.removeprefix(indent) if line.startswith(indent) else line.lstrip()


def _check_names(function: FunctionType, definition: ast.FunctionDef) -> None:
    """That the function uses no name of the module around it."""
    # Annotations are not evaluated in the shipped file, and decorators are not in it.
    tree = _WithoutAnnotations().visit(ast.parse(ast.unparse(definition)))
    tree.body[0].decorator_list = []
    module = symtable.symtable(ast.unparse(ast.fix_missing_locations(tree)), SOURCE_FILE, "exec")
    used: set[str] = set()
    bound = {definition.name}
    for table in _tables(module):
        for symbol in table.get_symbols():
            if table is module or symbol.is_global():
                used |= {symbol.get_name()} if symbol.is_referenced() else set()
                bound |= {symbol.get_name()} if symbol.is_assigned() or symbol.is_imported() else set()
    # A module may define a name that is also a builtin one: then it means the module's.
    known = set(dir(builtins)) - function.__globals__.keys() | _OF_EVERY_MODULE | bound
    missing = sorted(used - known)
    if missing:
        raise ConfigurationError(
            _called(function),
            ", ".join(missing),
            "is defined outside the function, and only the function is shipped: import or define it inside, "
            "or pass it as an argument",
        )


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


# Its arguments.


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        try:
            _check_json(f"argument {name}", value)
        except RecursionError as error:
            raise ConfigurationError(f"argument {name}", None, "is nested too deeply for JSON") from error


def _check_json(path: str, value: Any) -> None:
    """That the value comes back from JSON as it is: a tuple would be a list, an enum's member a number."""
    if type(value) is list:
        for position, item in enumerate(value):
            _check_json(f"{path}[{position}]", item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigurationError(path, key, f"has a key of type {type(key).__name__}: JSON has text")
            _check_json(f"{path}[{key!r}]", item)
    elif type(value) not in _JSON_SCALARS:
        raise ConfigurationError(
            path,
            None,
            f"is of type {type(value).__qualname__}, which JSON does not have: pass text, numbers, true or "
            "false, None, or lists and dicts of these; for data, pass where they are",
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(path, value, "JSON has no such number")
