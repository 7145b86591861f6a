"""The files of a version beside its shards: descriptions for other programs, and the manifest that seals it.

croissant.json is MLCommons Croissant 1.0: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aifx.core.artifact import MANIFEST, Artifact, SealedFile, seal, short_reference
from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.files import RECORDS_LIMIT, replace_file
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json
from aifx.core.stores import Store
from aifx.data.versions.manifest import COMING, CROISSANT, PROFILE, SHARDS, SUMS, TASKS, Manifest, sums_of

_CROISSANT = (
    "citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated",
    "replace", "samplingRate", "separator", "source", "subField", "transform", "equivalentProperty",
)  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _CROISSANT},
}

_LIST = re.compile(r"(?:large_)?list<(?:item|element): (\w+)>")
_DATA_TYPES = {  # Croissant's names of Arrow's types
    r"(large_)?(string|binary)(_view)?$|dictionary<values=string": "sc:Text",
    r"bool$": "sc:Boolean",
    r"u?int\d+$": "sc:Integer",
    r"float|double|halffloat|decimal": "sc:Float",
    r"date": "sc:Date",
    r"timestamp": "sc:DateTime",
}


def seal_version(folder: Path, manifest: Manifest, profile: Mapping[str, Any], tasks: Sequence[Any]) -> Artifact:
    """Write the descriptions, SHA256SUMS and, last, manifest.json into the folder that holds the shards.

    Args:
        profile: the content of profile.json. Like all descriptions, it is no part of the version's digest.
        tasks: the content of tasks.json.
    """
    documents = {
        CROISSANT: _encoded(croissant_of(manifest)),
        PROFILE: _encoded(profile),
        TASKS: _encoded(tasks, indent=None),  # nobody but aifx reads it
    }
    artifact = _described(manifest, documents)
    for name, data in {**documents, SUMS: sums_of(artifact)}.items():
        replace_file(folder / name, data)
    seal(folder, artifact, limit=RECORDS_LIMIT)  # a manifest has each source, such as a picture
    return artifact


def reseal(store: Store, manifest: Manifest, tasks: Sequence[Any]) -> None:
    """Write what names the places of files again, for a version that is there, in a folder or remote.

    The manifest changes last. After a kill, `check_files` knows the descriptions that were written before by COMING.
    Raises DataError without its profile, EnvironmentFault if the store fails.
    """
    profile = store.read(PROFILE)
    if profile is None:
        raise DataError(f"no {store.url}/{PROFILE}", "the version is not complete", "restore it from a copy")
    documents = {CROISSANT: _encoded(croissant_of(manifest)), PROFILE: profile, TASKS: _encoded(tasks, indent=None)}
    artifact = _described(manifest, documents)
    written = {CROISSANT: documents[CROISSANT], TASKS: documents[TASKS], SUMS: sums_of(artifact)}
    for name, data in {COMING: artifact.encode(), **written, MANIFEST: artifact.encode()}.items():
        store.write(name, iter([data]))
    store.remove(COMING)


def _encoded(document: Any, indent: int | None = 2) -> bytes:
    return encode(encode_json(document, indent=indent, ensure_ascii=False) + "\n")


def _described(manifest: Manifest, documents: Mapping[str, bytes]) -> Artifact:
    """The artefact of a version with these descriptions."""
    return manifest.artifact({name: SealedFile(len(data), sha256_of(data)) for name, data in documents.items()})


def croissant_of(manifest: Manifest) -> dict[str, Any]:
    """The description of a version: its files with their digests, its fields, licences and provenance."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.path,
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": shard.sha256,
        }
        for shard in manifest.shards
    ]
    step = manifest.step
    made_from = f" from {', '.join(map(short_reference, manifest.parents))}" if manifest.parents else ""
    licenses = [_license(name) for name in manifest.licenses]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": manifest.name,
        "description": f"Version {manifest.version} of {manifest.name}: made by `aifx data {step.name}`{made_from}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": f"1.0.0+{manifest.version}",
        "license": licenses[0] if len(licenses) == 1 else licenses,
        "isBasedOn": list(manifest.parents) or [source.name for source in manifest.sources],
        "distribution": [
            *files,
            {
                "@type": "cr:FileSet",
                "@id": SHARDS,
                "name": SHARDS,
                "encodingFormat": "application/x-parquet",
                **_included(manifest),
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "key": {"@id": "rows/_row"},
                "field": [field for column in manifest.columns.items() if (field := _field(*column)) is not None],
            }
        ],
    }


def _included(manifest: Manifest) -> dict[str, Any]:
    """The files of the set of all shards: those of a folder, or by name if some are in folders of other versions."""
    if not manifest.holders:
        return {"includes": f"{SHARDS}/*.parquet"}
    return {"containedIn": [{"@id": shard.name} for shard in manifest.shards], "includes": "*.parquet"}


def _license(name: str) -> str:
    """The address of SPDX's page of a licence; an expression or "unknown" is returned unchanged."""
    is_identifier = name != "unknown" and name.replace("-", "").replace(".", "").replace("+", "").isalnum()
    return f"https://spdx.org/licenses/{name}.html" if is_identifier else name


def _field(name: str, kind: str) -> dict[str, Any] | None:
    """None for a type that Croissant 1.0 has no name for, such as a struct."""
    item = _LIST.fullmatch(kind)
    plain = item[1] if item else kind
    data_type = next((found for pattern, found in _DATA_TYPES.items() if re.match(pattern, plain)), None)
    data_type = "sc:ImageObject" if name == "image" else data_type
    if data_type is None:
        return None
    return {
        "@type": "cr:Field",
        "@id": f"rows/{name}",
        "name": name,
        "dataType": data_type,
        **({"repeated": True} if item else {}),
        "source": {"fileSet": {"@id": SHARDS}, "extract": {"column": name}},
    }
