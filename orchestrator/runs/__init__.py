"""The life of a run: start, resume, fork, checkpoint, record, stop."""
