"""A packed set back to plain image files, to look at or to use as input."""

from pathlib import Path, PurePosixPath

from orchestrator.data.format.shard_index import ShardSet
from orchestrator.errors import UsageError


def export_images(packed: ShardSet, folder: Path, field: str, limit: int | None = None) -> int:
    """Write one image of each sample as 000000.png and so on; gives how many were written.

    Args:
        field: which image of a sample: `image`, or `a` or `b` of a pair.
        limit: write the first samples only.

    Raises:
        UsageError: the samples have no such field.
        DataError: a sample is damaged.
    """
    if field not in packed.fields:
        raise UsageError(
            f"{packed.uri} has no field {field!r}; its samples have: {', '.join(packed.fields)}"
        )
    places = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)][:limit]
    suffix = PurePosixPath(f".{packed.index.fields[field]}").suffix
    folder.mkdir(parents=True, exist_ok=True)
    for number, (shard, index) in enumerate(places):
        (folder / f"{number:06d}{suffix}").write_bytes(packed.read(shard, index)[field])
    return len(places)
