"""The recipe of a version, from the steps that made it and all that it was made from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.json_values import plain
from aifx.core.results import Result
from aifx.data.versions.made_steps import made_steps
from aifx.data.versions.manifest import COMPACT
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import find_catalog, project_around
from aifx.verbs.recipe_files import FIRST, KEEP, RecipeStep, parse_step

if TYPE_CHECKING:
    from aifx.core.project import Project
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest

Settings = dict[str, Any]

LINE = 80
"""Characters of a list on one line."""


@dataclass(frozen=True)
class WrittenRecipe(Result):
    """The document of `aifx data recipe --json`.

    Attributes:
        reference: the version.
        recipe: TOML that `aifx data make` takes.
        file: that was written; None if there is none.
    """

    reference: str
    recipe: str
    file: str | None


def data_recipe(
    name: str, *, output: StrPath | None = None, root: str | None = None, project: StrPath = "."
) -> WrittenRecipe:
    """Write the recipe of a version: the steps that made it, for `data_make`, which makes the same rows of them.

    Data sets that it was mixed from or joined with get their own tables. A step whose result depends on more than a
    recipe can say is an error that names it.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        output: new file to write; its folder is that of the paths in the recipe. By default none is written, and paths
            are relative to the project.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_recipe("poems").recipe.splitlines()[:2]
        ['[poems]', 'steps = [']
    """
    from aifx.core.files import write_output

    catalog, found = find_catalog(root, project)
    around = found or project_around(project)
    base = around.root if around is not None else Path.cwd()
    path = None if output is None else Path(output).absolute()
    writer = _Writer(catalog, base, path.parent if path is not None else base, around)
    manifest = catalog.manifest(name)
    writer.add(manifest)
    text = writer.text()
    if path is not None:
        if path.exists():
            raise UsageError(f"{output} exists", "a recipe is not replaced", "--output another-file.toml")
        write_output(path, text.encode())
    return WrittenRecipe(manifest.reference, text, None if path is None else str(path))


class _Writer:
    """Tables of data sets, each after those that it reads.

    Args:
        base: folder that the names of sources are relative to.
        folder: of the recipe.
        project: with the runs that classified rows.
    """

    def __init__(self, catalog: Catalog, base: Path, folder: Path, project: Project | None) -> None:
        self._catalog, self._base, self._folder, self._project = catalog, base, folder, project
        self._tables: dict[str, list[Settings]] = {}
        self._versions: dict[str, str] = {}

    def text(self) -> str:
        from aifx.config.toml import literal_key

        lines = []
        for name, steps in self._tables.items():
            lines += [f"[{literal_key(name)}]", "steps = ["]
            lines += [f"    {_step_text(step)}," for step in steps]
            lines += ["]", ""]
        return "\n".join(lines).rstrip() + "\n"

    def add(self, manifest: Manifest) -> None:
        """Add the table of a version."""
        self._versions[manifest.name] = manifest.whole_reference
        steps: list[Settings] = []
        last: RecipeStep | None = None
        for version in _history(self._catalog, manifest):
            for number, one in enumerate(made_steps(version)):
                if one.step.name not in _SETTINGS:
                    why = f"a recipe cannot say what `aifx data {one.step.name}` did"
                    raise UsageError(_no_recipe(one), why, f"aifx data lineage {manifest.reference}")
                name, settings_of = _SETTINGS[one.step.name]
                step = {name: settings_of(self, one)}
                try:
                    parsed = parse_step(step, manifest.name)
                except ConfigError as e:  # a setting that recipes do not have
                    raise UsageError(_no_recipe(one), f"{e.what}: {e.why}", e.hint) from e
                if number == 0 and last is not None and last.links_to(name):
                    steps[-1][KEEP] = True
                steps.append(step)
                last = parsed
        self._tables[manifest.name] = steps

    def read(self, reference: str) -> str:
        """The name of a data set that a step reads, whose table is added; a version if it has another one already."""
        manifest = self._catalog.manifest(reference)
        if manifest.name in self._versions and manifest.name not in self._tables:
            why = f"its recipe reads {manifest.reference}, and a recipe cannot read what it makes"
            raise UsageError(f"no recipe says what made {manifest.name}", why, f"aifx data lineage {manifest.name}")
        if self._versions.get(manifest.name, manifest.whole_reference) != manifest.whole_reference:
            return manifest.reference
        if manifest.name not in self._versions:
            self.add(manifest)
        return manifest.name

    def path(self, source: str) -> str:
        """A source as a recipe names it."""
        if "://" in source:
            return source
        path = self._base / source
        return os.path.relpath(path, self._folder) if path.is_relative_to(self._folder) else str(path)

    def added(self, one: Manifest) -> Settings:
        what = _no_recipe(one)
        if len(one.licenses) > 1:
            why = f"its sources have the licences {', '.join(one.licenses)}, and add has one"
            raise UsageError(what, why, "write a data set for each licence, and mix them")
        if one.kind == "images":
            why = "pictures get classes from folders and lists, which the version does not name"
            raise UsageError(what, why, 'write { add = { sources = [FOLDER], kind = "images" } } yourself')
        for source in one.sources:
            if source.reading.startswith("query"):
                why = f"a query of {source.name} read its rows"
                raise UsageError(what, why, f"aifx data query {one.reference} SQL --output FILE, and add FILE")
            for part, key in (("text", "text_field"), ("encoding", "encoding"), ("split_at", "split_at")):
                value = one.step.settings.get(key)
                if f" {part}=" in source.reading and f" {part}={value}" not in source.reading:
                    why = f"{source.name} was read with another {key} than {value}, which other files were read with"
                    raise UsageError(what, why, "write a data set for each way to read files, and mix them")
        settings: Settings = {"sources": [self.path(source.name) for source in one.sources]}
        settings["license"] = one.licenses[0]
        defaults = {"kind": None, "text_field": "text", "encoding": "utf-8", "split_at": None}
        given = {key: one.step.settings.get(key, default) for key, default in defaults.items()}
        given["kind"] = None if one.kind == "text" else one.kind
        settings |= {key: value for key, value in given.items() if value != defaults[key]}
        if one.quarantined_rows:
            settings["max_bad"] = float(one.quarantined_rows)
        if one.facts.get("damaged_files"):
            settings["allow_damaged"] = True
        return settings

    def mixed(self, one: Manifest) -> Settings:
        names = [self.read(parent) for parent in one.parents]
        weights, epochs = one.step.settings["weights"], one.step.settings["epochs"]
        settings: Settings = {"sets": [f"{name}:{weight!r}" for name, weight in zip(names, weights, strict=True)]}
        if any(each is not None for each in epochs):
            settings["epochs"] = [f"{n}:{each!r}" for n, each in zip(names, epochs, strict=True) if each is not None]
        return settings

    def cleaned(self, one: Manifest) -> Settings:
        from aifx.curation.rules import load_rules, rule_sets

        given = one.step.settings
        left, sets = plain(given["rules"]), []
        for name in rule_sets():
            rules = plain([rule.settings for rule in load_rules([name], self._folder)])
            if rules and all(rule in left for rule in rules):
                sets.append((left.index(rules[0]), name))
        sets.sort()
        chosen = [name for _, name in sets]
        if plain([rule.settings for rule in load_rules(chosen, self._folder)]) != left:
            why = "its rules are none of aifx's sets, and the version does not name their file"
            raise UsageError(_no_recipe(one), why, "write { clean = { rules = [FILE] } } yourself")
        if given["languages"] is None:
            why = "it identified no language (--languages none)"
            raise UsageError(_no_recipe(one), why, "aifx data clean --languages none")
        settings: Settings = {"rules": chosen, "languages": given["languages"], "unicode": given["unicode"]}
        if not given["encoding"]:
            settings["repair"] = False
        return settings | _limit(one)

    def masked(self, one: Manifest) -> Settings:
        given = one.step.settings
        return {given["action"]: True, "kinds": list(given["kinds"]), "region": list(given["regions"])}

    def labelled(self, one: Manifest) -> Settings:
        from aifx.curation.labels.agreement import ApplyLabels, decide
        from aifx.curation.labels.store import read_state

        column = one.step.settings["column"]
        labels = decide(read_state(self._catalog, one.name, column).labels())
        if ApplyLabels((), column, labels).settings["labels"] != one.step.settings["labels"]:
            why = f"the labels of column {column} have changed since"
            raise UsageError(
                _no_recipe(one), why, f"aifx data label apply {one.name} makes a version with those of now"
            )
        return {"column": column}

    def decontaminated(self, one: Manifest) -> Settings:
        against = []
        for name, _, is_held_out in one.step.settings["against"]:
            if is_held_out and name.partition("@")[0] == one.name:
                against.append(one.name)
            elif self._is_version(name):
                against.append(self.read(name))
            elif not is_held_out and (self._base / name).exists():
                against.append(self.path(name))
            else:
                why = f"it compared with {name}, which is not there under this name"
                raise UsageError(_no_recipe(one), why, "write { decontaminate = { against = [FILE] } } yourself")
        return {} if against == [one.name] else {"against": against}

    def joined(self, one: Manifest) -> Settings:
        given = dict(one.step.settings)
        times = [given.pop("event_time"), given.pop("feature_time")]
        asof = times[0] if times[0] == times[1] else ":".join(times)
        rest = {key: value for key, value in given.items() if value is not None and value is not False}
        return {"features": self.read(one.parents[1]), "asof": asof, **rest}

    def classified(self, one: Manifest) -> Settings:
        from aifx.curation.classify import checkpoint_digest

        run, _, step = one.step.settings["run"].rpartition("@")
        try:
            if self._project is None:
                raise UsageError(f"no run {run!r}", "a run is in a project, and there is none here")
            digest = checkpoint_digest(self._project.existing_run(run), int(step))
        except AifxError as e:
            raise UsageError(_no_recipe(one), f"{e.what}: {e.why}", e.hint) from e
        if digest != one.step.settings["sha256"]:
            why = f"the checkpoint of step {step} of run {run} is another one now"
            raise UsageError(_no_recipe(one), why, f"aifx ckpt ls --run {run}")
        settings = {key: value for key, value in self.same(one).items() if key != "sha256"}
        return {**settings, "run": run, "step": int(step)}

    def judged(self, one: Manifest) -> Settings:
        """The rules themselves: the version does not name the file that had them."""
        return {"rules": plain(one.step.settings["rules"]), **_limit(one)}

    def deduplicated(self, one: Manifest) -> Settings:
        settings = self.same(one)
        if "images" in settings:
            settings |= {"images": True, "distance": settings["images"]}
        if "semantic" in settings:
            settings["embedder"] = self._embedder(one, settings["embedder"])
        return settings

    def _embedder(self, one: Manifest, record: Mapping[str, Any]) -> str:
        """The name of an embedder that still is what it was."""
        from aifx.search.opening import open_embedder

        name = str(record["name"])
        try:
            is_same = plain(open_embedder(name, None, self._project).record) == plain(record)
        except AifxError:
            is_same = False
        if not is_same:
            why = f"the embedder {name} is not there any more, or gives other vectors"
            raise UsageError(_no_recipe(one), why, f"aifx data lineage {one.reference}")
        return name

    def same(self, one: Manifest) -> Settings:
        """The settings of a step as its verb takes them."""
        return {key: value for key, value in one.step.settings.items() if value is not None and value is not False}

    def _is_version(self, name: str) -> bool:
        from aifx.curation.history import find_manifest

        return "@" in name and find_manifest(self._catalog, name) is not None


def _step_text(step: Settings) -> str:
    """A step of a recipe on one line, but the items of a long list on a line each."""
    from aifx.config.toml import literal, literal_key

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{literal_key(key)} = {text(each)}" for key, each in value.items()) + "}"
        if isinstance(value, list) and len(literal(value)) > LINE:
            return "[\n" + "".join(f"        {literal(item)},\n" for item in value) + "    ]"
        return literal(value)

    return text(step)


_SETTINGS: Mapping[str, tuple[str, Callable[[_Writer, Manifest], Settings]]] = {
    "add": ("add", _Writer.added),
    "mix": ("mix", _Writer.mixed),
    "clean": ("clean", _Writer.cleaned),
    "dedupe": ("dedupe", _Writer.deduplicated),
    "classify": ("classify", _Writer.classified),
    "pii": ("pii", _Writer.masked),
    "label": ("label_apply", _Writer.labelled),
    "join": ("join", _Writer.joined),
    "split": ("split", _Writer.same),
    "expect": ("expect", _Writer.judged),
    "decontaminate": ("decontaminate", _Writer.decontaminated),
}
"""By the name in manifests: the name in recipes, and the function of the settings."""


def _history(catalog: Catalog, manifest: Manifest) -> list[Manifest]:
    """The versions from the files to a version, in order. Raises UsageError if one is deleted."""
    from aifx.curation.history import find_manifest

    found: list[Manifest] = []
    while True:
        if manifest.step.name != COMPACT:
            found.insert(0, manifest)
        if manifest.step.name in FIRST:
            return found
        if not manifest.parents or (parent := find_manifest(catalog, manifest.parents[0])) is None:
            why = "the version that it was made from was deleted" if manifest.parents else "nothing is before it"
            raise UsageError(_no_recipe(manifest), why, f"aifx data lineage {manifest.reference}")
        manifest = parent


def _limit(one: Manifest) -> Settings:
    """The setting that accepts a step, if it left out more rows than the default allows."""
    dropped = sum(one.dropped_by.values())
    return {"max_dropped": 1.0} if 2 * dropped > one.rows + dropped else {}


def _no_recipe(one: Manifest) -> str:
    return f"no recipe says what made {one.reference} (step {one.step.name})"
