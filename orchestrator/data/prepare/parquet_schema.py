"""The columns of a Parquet file, with the types that `datasets` writes into its metadata."""

import json
from typing import TYPE_CHECKING, Any

from orchestrator.data.prepare.columns import Column, ColumnKind

if TYPE_CHECKING:
    import pyarrow


def read_columns(schema: "pyarrow.Schema") -> tuple[Column, ...]:
    """Return the columns of a file; those that it marks as images are the only ones."""
    features = _read_features(schema.metadata or {})
    columns = []
    for field in schema:
        feature = features.get(field.name)
        feature = feature if isinstance(feature, dict) else {}
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        classes = tuple(map(str, names)) if isinstance(names, list) else ()
        columns.append(Column(field.name, _kind(field.type), str(field.type), classes))
    marked = {name for name, f in features.items() if isinstance(f, dict) and _is_image(f)}
    if not marked:
        return tuple(columns)
    # The file says which columns are images: other bytes are not.
    return tuple(
        Column(c.name, "other", c.description) if c.kind == "image" and c.name not in marked else c
        for c in columns
    )


def _is_image(feature: dict[str, Any]) -> bool:
    return feature.get("_type") == "Image"


def _read_features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return the types that `datasets` writes beside a schema: {column: {"_type": ...}}."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(data_type: "pyarrow.DataType") -> ColumnKind:
    from pyarrow import types

    if types.is_dictionary(data_type):
        return _kind(data_type.value_type)
    if types.is_struct(data_type):
        names = [field.name for field in data_type]
        has_bytes = "bytes" in names and _is_bytes(data_type.field("bytes").type)
        return "image" if has_bytes else "other"
    if types.is_list(data_type) or types.is_large_list(data_type):
        return "text" if _is_text(data_type.value_type) else "other"
    if _is_bytes(data_type):
        return "image"
    if _is_text(data_type):
        return "text"
    is_number = types.is_integer(data_type) or types.is_boolean(data_type)
    return "integer" if is_number else "other"


def _is_bytes(data_type: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(data_type)
        or types.is_large_binary(data_type)
        or types.is_binary_view(data_type)
    )


def _is_text(data_type: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return bool(
        types.is_string(data_type)
        or types.is_large_string(data_type)
        or types.is_string_view(data_type)
    )
