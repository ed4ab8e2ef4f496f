"""Use every operation of a storage on a test object."""

import uuid

from orchestrator.storage.base import Storage


def probe_storage(storage: Storage) -> list[str]:
    """Write, read, list and delete a test object; return what the storage did wrong.

    Checkpoints need each operation, and rely on a conditional write not replacing an object.
    Leaves nothing behind. Raises OrchestratorError if an operation is refused.
    """
    key, data, wrong = f"doctor-{uuid.uuid4().hex}", b"written by orchestrator doctor", []
    try:
        if not storage.put_if_absent(key, data):
            wrong.append("took a new object for one that exists")
        if storage.get(key) != data or storage.size(key) != len(data):
            wrong.append("returned other bytes than were written")
        if storage.get_range(key, 8, 2) != data[8:10]:
            wrong.append("returned another range than was requested")
        if key not in storage.list(key[:-1]):
            wrong.append("did not list a new object")
        if storage.put_if_absent(key, b"other") or storage.get(key) != data:
            wrong.append("replaced an object in a write on condition that there is none")
        storage.put(key, b"new")
        if storage.get(key) != b"new":
            wrong.append("did not replace an object")
    finally:
        storage.delete(key)
    if storage.exists(key):
        wrong.append("still had an object that was deleted")
    return wrong
