"""Count what ties the code together, and compare each count with its limit in pyproject.toml.

    scripts/house.py                   print the counts; fail unless each equals its limit
    scripts/house.py --list MEASURE    print the places behind a count
    scripts/house.py --lower           write counts that are below their limits as the new limits

[tool.house] has the limits. They only go down:

    circles            modules that import themselves through others
    back-arrows        imports of a room that is above the importing one in the layers of [tool.importlinter]
    config-signatures  functions with a parameter annotated with the `Config` of a module called config
    model-getattr      getattr and hasattr on an expression that ends in `model`
    step-lines         all lines of every function of aifx and jax_kernels that is entered between taking a batch and
                       draining its record, while a step is traced and run (scripts/traced_step.py)
    any other name     modules that import it or refer to it: hashlib, "os._exit", "aifx.config". With a dot first, as
                       in ".add_signal_handler", it is an attribute of any object

Imports inside functions and below TYPE_CHECKING count as others do, and so does a string "package.module" or
"package.module:name". An f-string imports all modules that it can name. A string that names a program (a module that
tests `__name__ == "__main__"`) starts a process, so it closes no circle.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tomlkit

ROOT = Path(__file__).resolve().parent.parent
STEP_LINES = "step-lines"


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    is_start: bool  # of a process


@dataclass
class Module:
    """A parsed file, and the names that it uses.

    Attributes:
        origins: what a name of the module refers to, if an import binds it: {"np": "numpy"}.
        uses: the first line of each dotted name that the module imports or refers to.
    """

    name: str
    path: str  # from the root of the repository
    nodes: list[ast.AST]
    origins: dict[str, str] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    name = package + alias.name
                    whole = package or alias.asname
                    self.origins[alias.asname or alias.name.split(".")[0]] = name if whole else name.split(".")[0]
                    self._use(name, node.lineno)
        for node in self.nodes:
            if isinstance(node, ast.Attribute):
                self._use(self.origin(node), node.lineno)

    def _use(self, name: str, line: int) -> None:
        self.uses[name] = min(line, self.uses.get(name, line))

    def origin(self, node: ast.AST) -> str:
        """The dotted name that an expression refers to, as far as imports tell."""
        if isinstance(node, ast.Attribute):
            return f"{self.origin(node.value)}.{node.attr}"
        return self.origins.get(node.id, f"{self.name}.{node.id}") if isinstance(node, ast.Name) else ""

    @property
    def is_program(self) -> bool:
        return self.name.endswith(".__main__") or any(
            isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in self.nodes
        )


def read_modules(root: Path, setuptools: Mapping[str, Any]) -> dict[str, Module]:
    """The modules of the packages that install, by name."""
    found, folders = {}, setuptools["package-dir"]
    for package in setuptools["packages"]:
        base = max((name for name in folders if is_within(package, name)), key=len)
        folder = Path(root, folders[base], *package.split(".")[base.count(".") + 1 :])
        for path in sorted(folder.glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
            found[name] = Module(name, str(path.relative_to(root)), nodes)
    return found


def named_modules(node: ast.AST, module: Module, known: Collection[str]) -> Iterator[str]:
    """The modules that a statement imports or a string names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in known else str(node.module)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
        yield node.value.partition(":")[0]
    elif isinstance(node, ast.JoinedStr):
        parts = [re.escape(part.value) if isinstance(part, ast.Constant) else "[^.]+" for part in node.values]
        first = node.values[0]
        if isinstance(first, ast.FormattedValue) and ast.unparse(first.value) == "__name__":
            parts[0] = re.escape(module.name)
        if re.match(r"\w+\\\.", parts[0]):
            pattern = re.compile("".join(parts))
            yield from (name for name in known if pattern.fullmatch(name))


def read_imports(modules: Mapping[str, Module]) -> list[Import]:
    programs = {name.removesuffix(".__main__") for name, module in modules.items() if module.is_program}
    found = set()
    for module in modules.values():
        for node in module.nodes:
            is_string = isinstance(node, ast.Constant | ast.JoinedStr)
            for name in named_modules(node, module, modules):
                if name in modules and name != module.name:
                    found.add(Import(module.name, name, node.lineno, is_string and name in programs))
    return sorted(found)


def circles(modules: Mapping[str, Module], imports: Sequence[Import]) -> list[str]:
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for one in imports:
        if not one.is_start:
            graph[one.importer].add(one.imported)
    reached = {}
    for name in modules:
        seen, waiting = set(), [*graph[name]]
        while waiting:
            if (other := waiting.pop()) not in seen:
                seen.add(other)
                waiting += graph[other]
        reached[name] = seen
    first = {x.importer: x for x in reversed(imports) if not x.is_start and x.importer in reached[x.imported]}
    return [f"{modules[name].path}:{first[name].line}: {first[name].imported}" for name in sorted(first)]


def back_arrows(modules: Mapping[str, Module], imports: Collection[Import], contract: Mapping[str, Any]) -> list[str]:
    """A package outside of the containers, such as jax_kernels, is below all rooms."""
    order = {room: i for i, layer in enumerate(contract["layers"]) for room in re.split(r"\s*[:|]\s*", layer)}

    def height(name: str) -> int | None:
        package, _, rest = name.partition(".")
        return order.get(rest.split(".")[0]) if package in contract["containers"] else len(order)

    found = {}
    for one in imports:
        above, below = height(one.imported), height(one.importer)
        if above is not None and below is not None and above < below:
            found[f"{modules[one.importer].path}:{one.line}"] = one.imported
    return [f"{place}: {name}" for place, name in found.items()]


def takes_config(module: Module, node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    annotations = [x.annotation for x in ast.walk(node.args) if isinstance(x, ast.arg) and x.annotation is not None]
    return any(module.origin(x).endswith(".config.Config") for whole in annotations for x in ast.walk(whole))


def asks_model(_: Module, node: ast.AST) -> bool:
    is_asking = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr")
    return is_asking and re.search(r"(^|[._])model$", ast.unparse(node.args[0])) is not None


def matching(modules: Mapping[str, Module], matches: Callable[[Module, ast.AST], bool]) -> list[str]:
    return [
        f"{module.path}:{node.lineno}: {getattr(node, 'name', None) or ast.unparse(node)}"
        for module in modules.values()
        for node in module.nodes
        if matches(module, node)
    ]


def users(modules: Mapping[str, Module], name: str) -> list[str]:
    """The modules outside of `name` that use it."""
    found = {}
    for module in modules.values():
        for used, line in module.uses.items():
            if used.endswith(name) if name[0] == "." else is_within(used, name) and not is_within(module.name, name):
                found[module.path] = min(line, found.get(module.path, line))
    return [f"{path}:{line}" for path, line in found.items()]


def is_within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def measure(root: Path, project: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, int, list[str]]]:
    """The count of each measure or name of `names`, and the places behind it."""
    tool = project["tool"]
    modules = read_modules(root, tool["setuptools"])
    imports = read_imports(modules)
    layers = next(x for x in tool["importlinter"]["contracts"] if x["type"] == "layers")
    measures: dict[str, Callable[[], list[str]]] = {
        "circles": lambda: circles(modules, imports),
        "back-arrows": lambda: back_arrows(modules, imports, layers),
        "config-signatures": lambda: matching(modules, takes_config),
        "model-getattr": lambda: matching(modules, asks_model),
    }
    for name in names:
        if name == STEP_LINES:
            from traced_step import traced_step  # here, since it trains

            lines = traced_step(root)
            yield name, sum(lines.values()), [f"{place}, {count} lines" for place, count in lines.items()]
        else:
            places = measures[name]() if name in measures else users(modules, name)
            yield name, len(places), places


def main(arguments: Sequence[str]) -> bool:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this script's)")
    parser.add_argument("--list", metavar="MEASURE", help="print its places; MEASURE can be any name")
    parser.add_argument("--lower", action="store_true", help="write lower limits into pyproject.toml")
    options = parser.parse_args(arguments)
    path = options.root / "pyproject.toml"
    document = tomlkit.parse(path.read_text())
    limits: Any = document["tool"]["house"]
    names = [options.list] if options.list else [*limits]
    if STEP_LINES in names and sys.version_info < (3, 12):
        print(f"{STEP_LINES:<24}      -   needs sys.monitoring, which Python has since 3.12")
        names.remove(STEP_LINES)
    errors = []
    for name, count, places in measure(options.root, document, names):
        if options.list:
            print("\n".join(places))
            continue
        limit = limits[name]
        if options.lower:
            limits[name] = limit = min(limit, count)
        print(f"{name:<24} {count:>6}   limit {limit}")
        if count > limit:
            errors += [
                *places,
                f"error: {name} is {count}, above its limit of {limit}: its places are listed before this",
            ]
        elif count < limit:
            errors.append(f"error: {name} is below its limit; to write {count}: scripts/house.py --lower")
    if options.lower:
        path.write_text(tomlkit.dumps(document))
    print("\n".join(errors), file=sys.stderr, end="\n" if errors else "")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
