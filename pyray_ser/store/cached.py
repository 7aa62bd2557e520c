"""Cache the results of a function for all processes of a store.

Each result is a named object: the name consists of the function and a digest of the arguments. The table of names
counts the uses of a name and orders them, so all processes know the least recently used entry. One more entry
per function counts the misses, and the hits of entries that were dropped.

The interface is that of `functools.lru_cache`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from .. import _core, _log
from ..exceptions import NameExistsError, ObjectLostError, ObjectStoreFullError, StoreFullError
from . import by_name, cache_keys, cached_results
from .cached_results import PREFIX
from .compute_once import Turn

if TYPE_CHECKING:
    from .._core import ObjectRef

__all__ = ["CacheInfo", "Cached", "cached"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

# The maximum number of digests that a process remembers for a function.
_MOST = 10_000
_FOREVER = 0xFFFFFFFF


class CacheInfo(NamedTuple):
    """
    Statistics of the cache of a function.

    Attributes
    ----------
    hits, misses : int
        Number of calls, in all processes, that found a result or computed one, since the cache was cleared.
    maxsize : int or None
        In bytes.
    currsize : int
        Bytes of the results.
    entries : int
        Number of results.
    """

    hits: int
    misses: int
    maxsize: int | None
    currsize: int
    entries: int


class Cached(Protocol[P, R]):
    """A function with a cache, for type checkers; see `cached`."""

    @property
    def __wrapped__(self) -> Callable[P, R]: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def cache_info(self) -> CacheInfo: ...
    def cache_clear(self) -> None: ...
    def cache_parameters(self) -> dict[str, Any]: ...
    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...


class _Cache:
    """The cache of one function."""

    def __init__(
        self, function: Callable[..., Any], maxsize: int | None, name: str | None, key: Any, ttl: float | None
    ) -> None:
        self.function = function
        self.maxsize = maxsize
        self.name = name
        self.key = key
        self.ttl = ttl
        # The engine knows ages in whole seconds.
        self.max_age = _FOREVER if ttl is None else max(1, round(min(ttl, _FOREVER)))
        self._prefix = ""
        self._known: dict[str, bytes] = {}
        self._warned = False

    @property
    def prefix(self) -> str:
        """The beginning of the names of all results."""
        if not self._prefix:
            if self.name is not None:
                label = self.name
            else:
                label = cache_keys.name_of(self.function)
                # Leave room for two digests.
                label = label.encode()[:100].decode(errors="ignore")
                label = f"{label}-{cache_keys.digest_of_function(self.function)[:16]}"
            self._prefix = f"{PREFIX}{label}/"
        return self._prefix

    def encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the name of the result for these arguments, in UTF-8."""
        if self.key is not None:
            args, kwargs = (self.key(*args, **kwargs),), {}
        text = cache_keys.text_of_scalars(args, kwargs)
        if text is None:
            return f"{self.prefix}{cache_keys.digest_of_arguments(args, kwargs)}".encode()
        found = self._known.get(text)
        if found is None:
            found = f"{self.prefix}{cache_keys.digest_of_arguments(args, kwargs)}".encode()
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[text] = found
        return found

    def look_up(self, turn: Turn) -> ObjectRef[Any] | None:
        """Return the result if another call has stored it meanwhile, and count a hit; drop a result that is too old."""
        turn.see()
        ref = _core.use_name(turn.store, turn.name.encode(), self.max_age)
        if ref is None and self.ttl is not None:
            entry = _core.find_version(turn.store, turn.name)
            if entry is not None and entry[2] >= self.max_age:  # another process may have replaced it meanwhile
                cached_results.forget(turn.store, turn.name, entry[0])
        return ref

    def store_result(self, turn: Turn, value: Any) -> ObjectRef[Any] | None:
        """Put a result; return its reference, or None if the store has no room even without other results."""
        cached_results.count(turn.store, self.prefix, 0, 1)
        try:
            ref = _core.put_reserved(value, turn.name)
        except NameExistsError:
            return _core.find_name(turn.store, turn.name)
        except (ObjectStoreFullError, StoreFullError) as error:
            self.warn(error)
            return None
        if self.maxsize is not None:
            if (ref.size or 0) > self.maxsize:
                self.warn(f"it has {ref.size} bytes, and the cache {self.maxsize}")
            found = cached_results.sized(turn.store, self.prefix)
            excess = sum(size for _, size in found) - self.maxsize
            if excess > 0:
                cached_results.drop(turn.store, found, excess)
        return ref

    def claim(self, turn: Turn) -> bool | None:
        """Do the same as `Turn.claim`; return None if the store has no room even after dropping all results."""
        try:
            return turn.claim()
        except (ObjectStoreFullError, StoreFullError) as error:
            self.warn(error)
            return None

    def warn(self, reason: object) -> None:
        """Log once that a result is not cached."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "a result of %s is not cached (this is reported once): %s", self.prefix[len(PREFIX) : -1], reason
            )

    # ---- the methods of the decorated function ---------------------------------------------------------------------------

    def cache_info(self) -> CacheInfo:
        """Return the numbers of hits and misses of all processes, and the size of the cache."""
        store = by_name.current()
        found = cached_results.entries(store, self.prefix)
        results = cached_results.sized(store, self.prefix)
        return CacheInfo(
            hits=sum(entry.uses for entry in found),
            misses=sum(entry.note for entry in found),
            maxsize=self.maxsize,
            currsize=sum(size for _, size in results),
            entries=len(results),
        )

    def cache_clear(self) -> None:
        """Drop all results of the function, and its counts, for all processes."""
        store = by_name.current()
        for entry in cached_results.entries(store, self.prefix):
            _core.unbind_name(store, entry.name)

    def cache_parameters(self) -> dict[str, Any]:
        """Return the parameters of the decorator."""
        return {"maxsize": self.maxsize, "name": self.name, "key": self.key, "ttl": self.ttl}

    def forget_call(self, *args: Any, **kwargs: Any) -> bool:
        """Drop the result for these arguments; return whether there was one."""
        name = self.encoded(args, kwargs).decode()
        store = by_name.current()
        ref = _core.find_name(store, name)
        return ref is not None and cached_results.forget(store, name, ref)


def _plain(value: Any) -> Any:
    # A generator can be read only once.
    return list(value) if inspect.isgenerator(value) else value


def _wrapper(cache: _Cache) -> Callable[..., Any]:
    function = cache.function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        store = by_name.current()
        encoded = cache.encoded(args, kwargs)
        ref = _core.use_name(store, encoded, cache.max_age)
        turn = None
        while True:
            if ref is not None:
                try:
                    return _core.get(ref)
                except ObjectLostError:
                    pass  # dropped after we found it, or freed
            if turn is None:
                turn = Turn(store, encoded.decode(), None)
            else:
                turn.wait()
            ref = cache.look_up(turn)
            claimed = ref is None and cache.claim(turn)
            if claimed is None:
                return _plain(function(*args, **kwargs))
            if claimed:
                try:
                    turn.begin()
                    ref = cache.look_up(turn)
                    if ref is None:
                        value = _plain(function(*args, **kwargs))
                        ref = cache.store_result(turn, value)
                        if ref is None:
                            return value
                        del value
                finally:
                    turn.end()

    return wrapper


def _async_wrapper(cache: _Cache) -> Callable[..., Any]:
    import asyncio

    function = cache.function

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        store = by_name.current()
        encoded = cache.encoded(args, kwargs)
        ref = _core.use_name(store, encoded, cache.max_age)
        turn = None
        while True:
            if ref is not None:
                try:
                    return _core.get(ref)
                except ObjectLostError:
                    pass
            if turn is None:
                turn = Turn(store, encoded.decode(), None)
            else:
                await turn.wait_async()
            ref = cache.look_up(turn)
            claimed = ref is None and cache.claim(turn)
            if claimed is None:
                return await function(*args, **kwargs)
            if claimed:
                try:
                    turn.begin()
                    ref = cache.look_up(turn)
                    if ref is None:
                        value = await function(*args, **kwargs)
                        ref = await asyncio.to_thread(cache.store_result, turn, value)
                        if ref is None:
                            return value
                        del value
                finally:
                    turn.end()

    return wrapper


@overload
def cached(maxsize: Callable[P, R], /) -> Cached[P, R]: ...
@overload
def cached(
    maxsize: int | str | None = None,
    *,
    name: str | None = None,
    key: Callable[..., Any] | None = None,
    ttl: float | None = None,
) -> Callable[[Callable[P, R]], Cached[P, R]]: ...
def cached(
    maxsize: Any = None,
    *,
    name: str | None = None,
    key: Callable[..., Any] | None = None,
    ttl: float | None = None,
) -> Any:
    """
    Decorator that caches the results of a function in the store, for all processes that use the store.

    Concurrent calls with equal arguments compute once; the others wait and read the result in place. Results are
    read-only, as those of `get`. The least recently used results are dropped when the cache is larger than `maxsize` or
    the store is full; a process that reads a dropped result keeps it.

    Parameters
    ----------
    maxsize : int or str, optional
        Maximum size of the results in bytes, as a number or text such as ``"2G"``. By default only the store limits it.
    name : str, optional
        Name of the cache, for functions of different programs that share results. By default, the name of the
        function and a digest of its code: an edited function has a new cache.
    key : callable, optional
        A function of the arguments whose result identifies them. By default all arguments do: scalars by type and value,
        references by their object, all others by their pickled content.
    ttl : float, optional
        Seconds after which a result is computed again, to the second, and at least one second.

    Returns
    -------
    callable
        The decorated function or coroutine function. It has ``cache_info()`` with counts of all processes,
        ``cache_clear()``, ``cache_parameters()``, ``forget(*args)``, which drops one result, and ``__wrapped__``. A generator
        function returns lists.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid.

    See Also
    --------
    functools.lru_cache : the same for one process.

    Examples
    --------
    >>> @pyray_ser.cached("2G")
    ... def embeddings(language):
    ...     return load_embeddings(language)
    """
    if callable(maxsize):  # used without parentheses
        return cached()(maxsize)
    from .options import size_of

    limit = None if maxsize is None else size_of(maxsize, "maxsize")
    if limit is not None and limit < 1:
        raise ValueError(f"maxsize is None or a number of bytes above 0, not {maxsize!r}")
    if name is not None and (not isinstance(name, str) or not 0 < len(name.encode()) <= 140 or "/" in name):
        raise ValueError(f"name is a text of 1 to 140 bytes without '/', not {name!r}")
    if key is not None and not callable(key):
        raise TypeError(f"key is a function of the arguments, not {type(key).__name__!r}")
    if ttl is not None and (not isinstance(ttl, (int, float)) or not ttl > 0):
        raise ValueError(f"ttl is a number of seconds above 0, not {ttl!r}")

    def decorate(function: Callable[..., Any]) -> Any:
        if not callable(function):
            raise TypeError(f"cached() decorates a function, not {type(function).__name__!r}")
        cache = _Cache(function, limit, name, key, ttl)
        made: Any = _async_wrapper(cache) if inspect.iscoroutinefunction(function) else _wrapper(cache)
        made.cache_info = cache.cache_info
        made.cache_clear = cache.cache_clear
        made.cache_parameters = cache.cache_parameters
        made.forget = cache.forget_call
        return made

    return decorate
