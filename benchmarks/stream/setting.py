"""What a tool is told to pack or to read."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.stream.kinds import Kind


@dataclass(frozen=True)
class Setting:
    """One tool, one kind of data."""

    kind: Kind
    count: int
    """Samples of the set."""
    shards: int
    """Files that the set is cut into."""
    seed: int
    source: Path
    """The samples, as kinds.write_source wrote them."""
    uri: str
    """Where the tool's set is, or is to be."""
    scratch: Path
    """An empty folder, for this process alone."""

    @property
    def bucket(self) -> str:
        """The bucket in ``uri``."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """The prefix in ``uri``."""
        return self.uri.removeprefix("s3://").partition("/")[2]

    @property
    def per_shard(self) -> int:
        """Most samples of a shard."""
        return -(-self.count // self.shards)
