"""A small model checker: run actors that share a store in every order of their operations.

Each actor is a function that uses a storage. Before each operation it waits for its turn, so that
an order of turns determines everything. All orders are explored, and in each of them one actor may
also die at any operation. A state that was reached before is not explored again: it consists of the
content of the store, in the order in which it was written, and of what each actor has been told.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.storage.base import Storage

Actor = Callable[[Storage], object]
Turn = tuple[str, bool]
"""An actor's name, and whether it dies instead of going on."""
OPERATIONS = ("get", "put", "put_if_absent", "list", "delete", "size")
TIMEOUT_S = 60


class Died(BaseException):
    """Ends an actor at an operation, as a crash does: the store gets nothing more of it."""


class MemoryStorage(Storage):
    """A store in a dictionary."""

    uri = "memory://"

    def __init__(self, content: Mapping[str, bytes]) -> None:
        self.content = dict(content)

    def get(self, key: str) -> bytes:
        if key not in self.content:
            raise self._not_found(key)
        return self.content[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def put(self, key: str, data: bytes) -> None:
        self.content[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.content.setdefault(key, data) is data

    def list(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.content if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self.content.pop(key, None)

    def size(self, key: str) -> int:
        return len(self.get(key))


@dataclass
class _Thread:
    """An actor in a thread that stops before each operation."""

    name: str
    store: MemoryStorage
    told: list[Any] = field(default_factory=list)
    """Results of its operations."""
    waiting: str = ""
    """Operation that it waits for; empty once it has ended."""
    dies: bool = False
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.turn, self.stopped = threading.Semaphore(0), threading.Semaphore(0)

    def start(self, actor: Actor) -> None:
        def run() -> None:
            try:
                actor(_Gated(self))  # type: ignore[arg-type]
            except BaseException as error:
                self.error = error
            self.waiting = ""
            self.stopped.release()

        threading.Thread(target=run, daemon=True).start()
        assert self.stopped.acquire(timeout=TIMEOUT_S)

    def go_on(self, dies: bool) -> None:
        self.dies = dies
        self.turn.release()
        assert self.stopped.acquire(timeout=TIMEOUT_S)

    def call(self, operation: str, *arguments: Any) -> Any:
        """Wait for the turn, then do the operation; called by the actor."""
        if self.dies:
            raise Died
        self.waiting = f"{operation} {arguments[0] if arguments else ''}"
        self.stopped.release()
        assert self.turn.acquire(timeout=TIMEOUT_S)
        if self.dies:
            raise Died
        try:
            result = getattr(self.store, operation)(*arguments)
        except Exception as error:
            self.told.append(type(error).__name__)
            raise
        self.told.append(result)
        return result


class _Gated:
    """The storage that an actor sees."""

    def __init__(self, thread: _Thread) -> None:
        self._thread = thread

    def __getattr__(self, name: str) -> Any:
        if name == "exists":
            return self._exists
        name = "get" if name == "get_record" else name
        assert name in OPERATIONS, name
        return lambda *arguments: self._thread.call(name, *arguments)

    def _exists(self, key: str) -> bool:
        return key in self._thread.call("list", key)


@dataclass
class World:
    """What an order of turns has led to."""

    content: dict[str, bytes]
    errors: dict[str, BaseException | None]
    """How each actor ended; None: without an error."""
    order: list[str]
    """The operations, for messages."""


def explore(
    content: Mapping[str, bytes],
    actors: Mapping[str, Actor],
    check: Callable[[World], None],
    state_of: Callable[[Any], Any],
) -> int:
    """Run ``actors`` in all orders, and call ``check`` for each end; return the number of states.

    Args:
        state_of: of a value in the store or a result, without what differs from run to run.
    """
    seen: set[Any] = set()
    todo: list[list[Turn]] = [[]]
    while todo:
        todo += _run(todo.pop(), content, actors, check, state_of, seen)
    return len(seen)


def _run(
    turns: list[Turn],
    content: Mapping[str, bytes],
    actors: Mapping[str, Actor],
    check: Callable[[World], None],
    state_of: Callable[[Any], Any],
    seen: set[Any],
) -> list[list[Turn]]:
    """Run one order, first of ``turns``; return the orders that branch off from it."""
    store = MemoryStorage(content)
    threads = {name: _Thread(name, store) for name in actors}
    for name, actor in actors.items():
        threads[name].start(actor)
    branches: list[list[Turn]] = []
    taken: list[Turn] = []
    order: list[str] = []
    while waiting := [thread for thread in threads.values() if thread.waiting]:
        if len(taken) < len(turns):
            turn = turns[len(taken)]
        else:
            state = repr(
                (
                    [(key, state_of(value)) for key, value in store.content.items()],
                    [(t.name, t.waiting, [state_of(each) for each in t.told]) for t in waiting],
                    [(t.name, type(t.error)) for t in threads.values() if not t.waiting],
                )
            )
            if state in seen:
                for thread in waiting:  # let the threads end
                    thread.go_on(dies=True)
                return branches
            seen.add(state)
            choices = [(thread.name, False) for thread in waiting]
            if not any(dies for _, dies in taken):
                choices += [(thread.name, True) for thread in waiting]
            turn = choices[0]
            branches += [[*taken, other] for other in choices[1:]]
        name, dies = turn
        order.append(f"{name}: {'dies at ' * dies}{threads[name].waiting}")
        threads[name].go_on(dies)
        taken.append(turn)
    check(World(store.content, {name: t.error for name, t in threads.items()}, order))
    return branches
