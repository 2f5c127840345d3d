"""What the docstrings of public names lack: arguments, shapes of tensors, errors."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

SHAPED = re.compile(r"_\d?[A-Z][A-Z0-9]*\Z")
"""The end of a name that holds its shape: x_BCHW, z_NZ."""
SHAPE = re.compile(r"\((?:\w+|\.\.\.)(?:, ?[\w .*+]+)*,?\)|scalar|\bshape\b")
TENSORS = re.compile(r"\b(Tensor|Values|NDArray|Arrays|ndarray)\b")
NO_ERRORS_OF_USERS = {"AssertionError", "AttributeError", "StopIteration", "NotImplementedError"}


def public_modules(package: ModuleType) -> Iterator[ModuleType]:
    """Yield the modules that a package names in `__all__`."""
    for name in package.__all__:
        if inspect.ismodule(found := getattr(package, name)):
            yield found


def public_objects(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield functions and classes by name: those of `__all__`, or those defined in the module."""
    for name in getattr(module, "__all__", None) or vars(module):
        found = getattr(module, name)
        own = hasattr(module, "__all__") or getattr(found, "__module__", "") == module.__name__
        if (
            own
            and not name.startswith("_")
            and (inspect.isfunction(found) or inspect.isclass(found))
        ):
            yield f"{module.__name__}.{name}", found


def problems(name: str, found: Any) -> Iterator[str]:
    """Yield what is missing in the documentation of a function, or of a class and its methods."""
    if not inspect.getdoc(found):
        yield f"{name}: no docstring"
    elif inspect.isclass(found):
        yield from _of_class(name, found)
    else:
        yield from _of_function(name, found, _module_of(found), inspect.getdoc(found) or "")


def _of_class(name: str, found: type) -> Iterator[str]:
    context = "\n".join([*_texts_of(found), _module_of(found)])
    protocols = _protocols_like(found)
    for key, member in list(vars(found).items()):
        function = member.fget if isinstance(member, property) else member
        function = getattr(function, "__func__", function)
        is_written = inspect.isfunction(function) and function.__module__.startswith("aae_dist")
        is_public = not key.startswith("_") or (key == "__init__" and "__init__" in vars(found))
        if not is_written or not is_public or hasattr(function, "__wrapped__"):
            continue
        inherited = [
            vars(each)[key] for each in (*found.__mro__[1:], *protocols) if key in vars(each)
        ]
        docs = [text for each in (member, *inherited) if (text := inspect.getdoc(each))]
        if key != "__init__" and not docs:
            yield f"{name}.{key}: no docstring"
        elif not _generated(function):
            yield from _of_function(f"{name}.{key}", function, context, "\n".join(docs))


def _protocols_like(found: type) -> list[type]:
    """Return the protocols of a class's module, whose methods it may implement without a base."""
    module = importlib.import_module(found.__module__)
    return [
        each
        for each in vars(module).values()
        if inspect.isclass(each) and getattr(each, "_is_protocol", False)
    ]


def _generated(function: Any) -> bool:
    return function.__code__.co_filename.startswith("<")


def _of_function(name: str, function: Any, context: str, own: str) -> Iterator[str]:
    text = f"{own}\n{context}"
    signature = inspect.signature(function)
    for parameter in list(signature.parameters.values()):
        annotation = str(parameter.annotation)
        if parameter.name in ("self", "cls") or parameter.name.startswith("_"):
            continue
        base = SHAPED.sub("", parameter.name)
        if not (SHAPED.search(parameter.name) or re.search(rf"\b{base}\b", text)):
            yield f"{name}: argument {parameter.name} is not explained"
        is_tensor = TENSORS.search(annotation) and "Callable" not in annotation
        if is_tensor and not (SHAPED.search(parameter.name) or SHAPE.search(text)):
            yield f"{name}: argument {parameter.name} has no shape"
    result = str(signature.return_annotation)
    if re.match(r"(<class '|tuple\[)?torch\.Tensor", result) and not SHAPE.search(own):
        yield f"{name}: the result has no shape"
    for error in _raised(function) - NO_ERRORS_OF_USERS:
        if error not in text and "Raises" not in own and "rrors as for" not in own:
            yield f"{name}: raises {error}, which is not said"


def _raised(function: Any) -> set[str]:
    """Return the names of the classes in the `raise` statements of a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(
            ast.unparse(h.type or node) == "Exception" for h in node.handlers
        ):
            node.body = []  # what is raised there does not leave the function
    calls = [
        node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    ]
    return {call.id for call in calls if isinstance(call, ast.Name) and call.id[0].isupper()}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def _module_of(found: Any) -> str:
    return ast.get_docstring(_tree(found.__module__)) or ""


def _texts_of(found: type) -> Iterator[str]:
    """Yield the docstrings of a class, of its bases in the package, and of their attributes."""
    for each in found.__mro__:
        if not each.__module__.startswith("aae_dist"):
            continue
        yield each.__doc__ or ""
        for node in ast.walk(_tree(each.__module__)):
            if isinstance(node, ast.ClassDef) and node.name == each.__name__:
                for before, after in zip([*node.body, *node.body], node.body[1:], strict=False):
                    if isinstance(before, ast.AnnAssign | ast.Assign) and _is_text(after):
                        yield f"{ast.unparse(before)}: {after.value.value}"


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
