"""Export the images of a packed set as plain files."""

from pathlib import Path, PurePosixPath

from orchestrator.data.format.shard_index import ShardSet
from orchestrator.data.format.tar_members import find_member, sample_members
from orchestrator.errors import UsageError


def export_images(packed: ShardSet, folder: Path, field: str, limit: int | None = None) -> int:
    """Write image ``field`` of the first ``limit`` samples as 000000.png and so on; count them.

    Raises UsageError if the samples have no such field, and DataError if one is corrupt.
    """
    if field not in packed.fields:
        raise UsageError(
            f"{packed.uri} has no field {field!r}; its samples have: {', '.join(packed.fields)}"
        )
    locations = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)][:limit]
    endings = packed.index.fields[field]
    folder.mkdir(parents=True, exist_ok=True)
    for number, (shard, index) in enumerate(locations):
        where = packed.describe(shard, index)
        data = packed.read_bytes(shard, index)
        image = packed.split_members(data, where)[field]
        name = find_member(sample_members(data, where), endings)
        suffix = PurePosixPath(f"x.{name}").suffix.lower()
        (folder / f"{number:06d}{suffix}").write_bytes(image)
    return len(locations)
