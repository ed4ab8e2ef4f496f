"""Records of trials as the storage has them."""

from orchestrator.record_reader import parse_record
from orchestrator.sweeps.records import Trial


def parse_trial(text: str) -> Trial:
    """Parse the record of a trial."""
    return parse_record(Trial, text.encode(), "trial", "")
