"""A version as MLCommons Croissant 1.0: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html."""

from __future__ import annotations

import re
from typing import Any

from aifx.core.artifact import short_reference
from aifx.data.versions.manifest import SHARDS, Manifest

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_LIST = re.compile(r"(?:large_)?list<(?:item|element): (\w+)>")
_DATA_TYPES = {
    r"(large_)?(string|binary)(_view)?$|dictionary<values=string": "sc:Text",
    r"bool$": "sc:Boolean",
    r"u?int\d+$": "sc:Integer",
    r"float|double|halffloat|decimal": "sc:Float",
    r"date": "sc:Date",
    r"timestamp": "sc:DateTime",
}


def croissant_of(manifest: Manifest) -> dict[str, Any]:
    """The description of a version: its files with their digests, its fields, licences and provenance."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.name,
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
                "includes": f"{SHARDS}/*.parquet",
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


def _license(name: str) -> str:
    """SPDX's page of a licence; an expression or "unknown" as it is."""
    is_identifier = name != "unknown" and name.replace("-", "").replace(".", "").replace("+", "").isalnum()
    return f"https://spdx.org/licenses/{name}.html" if is_identifier else name


def _field(name: str, kind: str) -> dict[str, Any] | None:
    """None for a type that Croissant 1.0 has no name for, such as a struct."""
    item = _LIST.fullmatch(kind)
    data_type = "sc:ImageObject" if name == "image" else _data_type(item[1] if item else kind)
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


def _data_type(kind: str) -> str | None:
    """Croissant's name of a type of Arrow."""
    return next((name for pattern, name in _DATA_TYPES.items() if re.match(pattern, kind)), None)
