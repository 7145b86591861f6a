"""The interfaces of the source code: protocols and abstract classes, what implements them, and what calls them.

All of it is read from syntax trees, and nothing is imported. Callers are found by annotations: a module calls an
interface if it uses a member of it on a name, an attribute or a result whose annotation names the interface.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = {"aifx": "aifx", "commands": "aifx.commands", "jax_kernels": "jax_kernels"}
"""The folders with code, and the packages that they are imported as."""

PLAIN = frozenset({"Hook", "Objective", "Task", "Tracker"})
"""Interfaces that are neither protocols nor abstract: their methods do nothing by default."""

PROTOCOL, ABSTRACT = "typing.Protocol", "abc.ABC"
ATTRIBUTES = frozenset({"property", "cached_property", "functools.cached_property"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Shape:
    """The parameters of a method that have no default, without self, and the annotation of its result."""

    parameters: tuple[str, ...]
    returns: str


@dataclass(frozen=True)
class Member:
    """A method or an attribute of an interface.

    Attributes:
        shape: None for an attribute.
        is_required: whether an implementation must define it.
    """

    name: str
    signature: str
    summary: str
    shape: Shape | None
    is_required: bool


@dataclass(frozen=True, eq=False)
class Class:
    """A class of the source code.

    Attributes:
        bases: full names of the classes that it derives from.
    """

    module: str
    node: ast.ClassDef
    bases: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def is_interface(self) -> bool:
        """Whether it is public, and an interface."""
        is_private = any(part.startswith("_") for part in self.full_name.split("."))
        return not is_private and (PROTOCOL in self.bases or ABSTRACT in self.bases or self.name in PLAIN)

    @property
    def description(self) -> str:
        """Its sort, its module, what it extends, and the first sentence of its docstring."""
        sort = "Protocol" if PROTOCOL in self.bases else "Abstract class" if ABSTRACT in self.bases else "Class"
        own = [f"`{base.rpartition('.')[2]}`" for base in self.bases if base.partition(".")[0] in PACKAGES]
        extends = f", extends {' and '.join(own)}" if own else ""
        return f"{sort} in `{self.module}`{extends}. {summary_of(self.node)}"

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Its public methods and attributes, in their order."""
        found = []
        for node, after in zip(self.node.body, [*self.node.body[1:], None], strict=True):
            if isinstance(node, Function) and is_public(node.name):
                found.append(self._method(node))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_public(node.target.id):
                text = after.value if isinstance(after, ast.Expr) else None
                meaning = text.value if isinstance(text, ast.Constant) else ""
                signature = f"{node.target.id}: {ast.unparse(node.annotation)}"
                summary = first_sentence(str(meaning))
                found.append(Member(node.target.id, signature, summary, None, node.value is None))
        return tuple(found)

    def _method(self, node: Function) -> Member:
        decorators = {ast.unparse(each) for each in node.decorator_list}
        is_required = "abstractmethod" in decorators or (PROTOCOL in self.bases and is_stub(node))
        returns = ast.unparse(node.returns) if node.returns else "None"
        if decorators & ATTRIBUTES:
            return Member(node.name, f"{node.name}: {returns}", summary_of(node), None, is_required)
        arguments = re.sub(r"^(self|cls)(, )?(/, )?", "", ast.unparse(node.args))
        signature = f"{node.name}({arguments}) -> {returns}"
        return Member(node.name, signature, summary_of(node), shape_of(node), is_required)

    @cached_property
    def defined(self) -> Mapping[str, Shape | None]:
        """The names that its body defines, also the attributes that its methods set."""
        found: dict[str, Shape | None] = {}
        for node in ast.walk(self.node):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found[node.attr] = None
        for node in self.node.body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id: None for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, Function):
                is_attribute = {ast.unparse(each) for each in node.decorator_list} & ATTRIBUTES
                found[node.name] = None if is_attribute else shape_of(node)
        return found


class Module:
    """A module: its tree, and the full names of what it imports and defines."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name, self.nodes = name, list(ast.walk(tree))
        self.functions = [node for node in self.nodes if isinstance(node, Function)]
        self.attributes = {node.attr for node in self.nodes if isinstance(node, ast.Attribute)}
        self._imports = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in self.nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        own = [node for node in self.nodes if isinstance(node, ast.ClassDef)]
        self._imports |= {node.name: f"{name}.{node.name}" for node in own}
        self.classes = [Class(name, node, tuple(self._bases(node))) for node in own]

    def _bases(self, node: ast.ClassDef) -> Iterator[str]:
        for base in node.bases:
            one = base.value if isinstance(base, ast.Subscript) else base
            yield self._imports.get(ast.unparse(one), ast.unparse(one))

    def named(self, annotation: ast.expr | None) -> set[str]:
        """The full names of the classes that an annotation names."""
        if annotation is None:
            return set()
        return {self._imports.get(node.id, node.id) for node in ast.walk(annotation) if isinstance(node, ast.Name)}

    def parameters(self, function: Function) -> dict[str, set[str]]:
        """The classes of the parameters of a function."""
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]
        return {one.arg: self.named(one.annotation) for one in every if one is not None}


class Source:
    """All modules, and what they say of interfaces."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = modules
        self._classes = {one.full_name: one for module in modules for one in module.classes}
        self.interfaces = {one.name: one for one in self._classes.values() if one.is_interface}

    def implementations(self, interface: Class) -> list[str]:
        """Return the classes that derive from an interface, or that have all members of a protocol.

        One attribute alone makes no implementation, and one method only if its result has the same annotation.
        """
        required = [member for member in self._members(interface).values() if member.is_required]
        is_structural = PROTOCOL in interface.bases and (len(required) > 1 or any(member.shape for member in required))
        return sorted(
            one.full_name
            for one in self._classes.values()
            if not (one.is_interface or one.name.startswith("_"))
            if interface.full_name in self._ancestors(one) or (is_structural and self._has_all(one, required))
        )

    def callers(self, interface: Class) -> list[str]:
        """Return the modules that use a member on a value whose annotation names the interface."""
        members = set(self._members(interface))
        return sorted(
            module.name
            for module in self._modules
            if members & module.attributes
            if any(self._uses(module, function, interface.full_name, members) for function in module.functions)
            or (module.name == interface.module and calls_itself(interface, members))
        )

    def _parents(self, one: Class) -> Iterator[Class]:
        yield from (self._classes[base] for base in one.bases if base in self._classes and base != one.full_name)

    def _ancestors(self, one: Class) -> set[str]:
        return set(one.bases).union(*map(self._ancestors, self._parents(one)))

    def _members(self, interface: Class) -> dict[str, Member]:
        inherited = {name: member for base in self._parents(interface) for name, member in self._members(base).items()}
        return inherited | {member.name: member for member in interface.members}

    def _defined(self, one: Class) -> dict[str, Shape | None]:
        inherited = {name: found for base in self._parents(one) for name, found in self._defined(base).items()}
        return inherited | dict(one.defined)

    def _has_all(self, one: Class, required: Sequence[Member]) -> bool:
        defined = self._defined(one)
        if not all(member.name in defined for member in required):
            return False
        pairs = [(member.shape, defined[member.name]) for member in required if member.shape is not None]
        if len(required) == 1:
            return all(expected == found for expected, found in pairs)
        return all(found is not None and found.parameters == expected.parameters for expected, found in pairs)

    @cached_property
    def _types(self) -> Mapping[str, set[str]]:
        """The classes that annotations give to attributes and to the results of functions, by their names."""
        found: dict[str, set[str]] = defaultdict(set)
        for module in self._modules:
            for node in module.nodes:
                if isinstance(node, ast.AnnAssign):
                    name = getattr(node.target, "attr", getattr(node.target, "id", ""))
                    found[name] |= module.named(node.annotation)
                elif isinstance(node, Function):
                    found[node.name] |= module.named(node.returns)
                    parameters = module.parameters(node)
                    for target, value in set_attributes(node):
                        found[target] |= parameters.get(value, set())
        return found

    def _types_of(self, node: ast.expr, local: Mapping[str, set[str]]) -> set[str]:
        """The classes that a value may have, by its name or by that of the attribute or function that gives it."""
        if isinstance(node, ast.Name):
            return local.get(node.id, set())
        if isinstance(node, ast.Subscript | ast.Await | ast.Starred):
            return self._types_of(node.value, local)
        giver = node.func if isinstance(node, ast.Call) else node
        return self._types.get(getattr(giver, "attr", getattr(giver, "id", "")), set())

    def _uses(self, module: Module, function: Function, interface: str, members: set[str]) -> bool:
        nodes = list(ast.walk(function))
        used = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in members]
        if not used:
            return False
        local = module.parameters(function)
        for node in nodes:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                local.setdefault(node.targets[0].id, self._types_of(node.value, local))
            elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
                local.setdefault(node.target.id, self._types_of(node.iter, local))
            elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
                local.setdefault(node.optional_vars.id, self._types_of(node.context_expr, local))
        return any(interface in self._types_of(node.value, local) for node in used)


@functools.cache
def read_source(root: Path) -> Source:
    """Return all modules of the repository at `root`."""
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found.append(Module(name, ast.parse(path.read_text("utf-8"))))
    return Source(found)


def interface_names(root: Path) -> set[str]:
    """Return the names of all interfaces, without syntax trees, which take seconds."""
    found = set(PLAIN)
    for folder in PACKAGES:
        for path in (root / folder).rglob("*.py"):
            if not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(root).parts):
                headers = re.findall(r"^class ([A-Za-z]\w*)\((.*?)\):$", path.read_text("utf-8"), re.MULTILINE)
                found |= {name for name, bases in headers if {"Protocol", "ABC"} & set(re.findall(r"\w+", bases))}
    return found


def summary_of(node: ast.ClassDef | Function) -> str:
    """Return the first sentence of a docstring."""
    return first_sentence(ast.get_docstring(node) or "")


def first_sentence(text: str) -> str:
    """Return the first sentence of a text in one line."""
    paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z`\[])", paragraph)[0]


def is_self(node: ast.expr) -> bool:
    """Whether an expression is the name self."""
    return isinstance(node, ast.Name) and node.id == "self"


def is_stub(node: Function) -> bool:
    """Whether a function has no more than a docstring and dots."""
    return all(isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in node.body)


def is_public(name: str) -> bool:
    """Whether a name is no private one: a method such as `__len__` is public, a constructor is not."""
    return not name.startswith("_") or (name.startswith("__") and name != "__init__")


def shape_of(node: Function) -> Shape:
    """Return the parameters and the result of a method."""
    positional = [*node.args.posonlyargs, *node.args.args][1:]
    needed = positional[: len(positional) - len(node.args.defaults)]
    return Shape(tuple(one.arg for one in needed), ast.unparse(node.returns) if node.returns else "")


def calls_itself(one: Class, members: set[str]) -> bool:
    """Whether methods of a class call others of it."""
    calls = (node.func for node in ast.walk(one.node) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and is_self(call.value) and call.attr in members for call in calls)


def set_attributes(node: Function) -> Iterator[tuple[str, str]]:
    """Yield the attributes of self that a function sets to a name, and the names."""
    for each in ast.walk(node):
        if isinstance(each, ast.Assign) and len(each.targets) == 1:
            target, value = each.targets[0], each.value
            are_tuples = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=False) if are_tuples else [(target, value)]  # type: ignore[attr-defined]
            for one, given in pairs:
                if isinstance(one, ast.Attribute) and is_self(one.value) and isinstance(given, ast.Name):
                    yield one.attr, given.id
