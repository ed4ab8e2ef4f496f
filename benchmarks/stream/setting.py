"""Parameters of packing and reading."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.stream.kinds import Kind


@dataclass(frozen=True)
class Setting:
    """Parameters of one tool and one kind of data."""

    kind: Kind
    count: int
    """Number of samples in the set."""
    shards: int
    """Number of files of the set."""
    seed: int
    source: Path
    """Tar file of the samples, from kinds.write_source."""
    uri: str
    """Location of the tool's set."""
    scratch: Path
    """Empty folder for this process only."""

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
        """Maximum number of samples per shard."""
        return -(-self.count // self.shards)
