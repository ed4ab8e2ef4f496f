"""A small model checker: run actors that share a store in every order of their operations.

Each actor is a function that uses a storage, and is determined by what its operations return. So an
actor that waits before an operation is known by the results of its earlier ones, and is brought
there again by calling it with them. All orders are explored, and in each of them some actors may
also die at any operation. A state that was reached before is not explored again: it consists of the
content of the store, in the order in which it was written, and of what each actor has been told.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.storage.base import Storage

Actor = Callable[[Storage], object]
StateOf = Callable[[Any], Any]
OPERATIONS = ("get", "put", "put_if_absent", "list", "delete", "size")


class Died(BaseException):
    """Ends an actor at an operation, as a crash does: the store gets nothing more of it."""


class _Waits(BaseException):
    """Ends the call of an actor that has reached its next operation."""


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


class _Replay:
    """The storage that an actor sees: it tells what it told before, then ends the actor's call."""

    def __init__(self, told: tuple[Any, ...]) -> None:
        self._told = list(reversed(told))
        self.next: tuple[str, tuple[Any, ...]] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "exists":
            return lambda key: key in self._call("list", key)
        name = "get" if name == "get_record" else name
        assert name in OPERATIONS, name
        return lambda *arguments: self._call(name, *arguments)

    def _call(self, operation: str, *arguments: Any) -> Any:
        if not self._told:
            self.next = self.next or (operation, arguments)  # not of a handler of this exception
            raise _Waits
        told = self._told.pop()
        if isinstance(told, Exception):
            raise told
        return told


@dataclass
class _Place:
    """Where an actor is: what it has been told, and what it does next."""

    actor: Actor
    told: tuple[Any, ...] = ()
    next: tuple[str, tuple[Any, ...]] | None = None
    """Its next operation; None once it has ended."""
    error: BaseException | None = None
    after: dict[Any, "_Place"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        replay = _Replay(self.told)
        try:
            self.actor(replay)  # type: ignore[arg-type]
        except BaseException as error:
            self.error = error
        self.next = replay.next

    def is_private(self, prefixes: tuple[str, ...]) -> bool:
        """Whether its next operation is on a key with one of ``prefixes``."""
        return bool(prefixes and self.next and self.next[1][0].startswith(prefixes))

    def go_on(self, store: MemoryStorage, state_of: StateOf) -> "_Place":
        """Do the next operation in ``store``."""
        assert self.next is not None
        operation, arguments = self.next
        result: Any
        try:
            result = getattr(store, operation)(*arguments)
            known = repr(state_of(result))
        except Exception as error:
            result, known = error, type(error).__name__
        if known not in self.after:
            self.after[known] = _Place(self.actor, (*self.told, result))
        return self.after[known]


@dataclass(frozen=True)
class World:
    """What an order of operations has led to."""

    content: dict[str, bytes]
    errors: dict[str, BaseException | None]
    """How each actor ended; None: without an error."""
    order: list[str]
    """The operations, for messages."""


@dataclass(frozen=True)
class _State:
    content: dict[str, bytes]
    places: dict[str, _Place]
    dead: frozenset[str]
    path: tuple[Any, ...] | None
    """The path before the last operation, and that operation."""

    def running(self) -> list[str]:
        return [n for n, place in self.places.items() if place.next and n not in self.dead]

    def world(self) -> World:
        errors = {n: Died() if n in self.dead else p.error for n, p in self.places.items()}
        order, path = [], self.path
        while path is not None:
            path, operation = path
            order.append(operation)
        return World(self.content, errors, order[::-1])

    def successors(
        self, state_of: StateOf, crashes: int, private: tuple[str, ...]
    ) -> Iterator["_State"]:
        running = self.running()
        alone = [name for name in running if self.places[name].is_private(private)]
        for name in alone[:1] or running:
            place = self.places[name]
            assert place.next is not None
            operation, arguments = place.next
            shown = f"{operation} {arguments[0] if arguments else ''}"
            store = MemoryStorage(self.content)
            places = {**self.places, name: place.go_on(store, state_of)}
            yield _State(store.content, places, self.dead, (self.path, f"{name}: {shown}"))
            if len(self.dead) < crashes and not alone:
                path = (self.path, f"{name}: dies at {shown}")
                yield _State(self.content, self.places, self.dead | {name}, path)

    def key(self, state_of: StateOf) -> int:
        """A number of 64 bits: the values themselves of a million states would fill the memory."""
        content = tuple((key, state_of(value)) for key, value in self.content.items())
        return hash((content, tuple(id(place) for place in self.places.values()), self.dead))


def explore(
    content: Mapping[str, bytes],
    actors: Mapping[str, Actor],
    check: Callable[[World], None],
    state_of: StateOf,
    crashes: int = 1,
    private: tuple[str, ...] = (),
) -> int:
    """Run ``actors`` in all orders, and call ``check`` for each end; return the number of states.

    Args:
        state_of: of a value in the store or a result, without what differs from run to run.
        crashes: so many actors may die.
        private: prefixes of keys that only one actor uses. Their operations are done at once, as it
            makes no difference to the other actors when they are done.
    """
    places = {name: _Place(actor) for name, actor in actors.items()}
    todo = [_State(dict(content), places, frozenset(), None)]
    seen = {todo[0].key(state_of)}
    while todo:
        state = todo.pop()
        if not state.running():
            check(state.world())
        for after in state.successors(state_of, crashes, private):
            key = after.key(state_of)
            if key not in seen:
                seen.add(key)
                todo.append(after)
    return len(seen)
