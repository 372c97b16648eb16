"""What all calls of a client have in common, and the options of one call made from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from ..channels.base import CallOptions, Compression
from ..errors import InvalidOption
from ..inference.request import UNSET
from ..options.deadline import deadline_after, seconds
from ..options.headers import HeaderSource, checked_headers
from ..options.values import one_of

__all__ = ["CallSettings"]

Hook = TypeVar("Hook", bound=Callable[[str], Any])

# Of calls that have nothing of their own; somebody may put a counter into a model's name.
_MOST_PLAIN = 256


class CallSettings(Generic[Hook]):
    """A client's own settings for its calls.

    Parameters
    ----------
    timeout, headers, header_hook, compression
        As in `triton_fast.Client`.

    Attributes
    ----------
    header_hook : callable or None
        For those who make calls: what it returns goes into `options`.

    Raises
    ------
    InvalidOption
        If one makes no sense.
    """

    __slots__ = ("_compression", "_headers", "_plain", "_timeout", "header_hook")

    def __init__(
        self,
        *,
        timeout: float | None,
        headers: HeaderSource | None,
        header_hook: Hook | None,
        compression: Compression | None,
    ) -> None:
        if header_hook is not None and not callable(header_hook):
            # Of what may be the headers themselves.
            raise InvalidOption(f"header_hook must be callable, got {type(header_hook).__name__}")
        self.header_hook = header_hook
        self._timeout = seconds(timeout, "timeout")
        self._headers = checked_headers(headers)
        self._compression = _checked(compression)
        self._plain: dict[str, CallOptions] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it is changed

    def __getstate__(self) -> tuple[Any, ...]:
        if self._headers:
            names = ", ".join(sorted({name for name, _ in self._headers}))
            warnings.warn(
                f"a client was pickled with the values of its headers ({names}), and whoever has "
                "the pickle can read them; a header_hook is pickled by its name, and gets them in "
                "the other process",
                stacklevel=2,
            )
        return self._timeout, self._headers, self.header_hook, self._compression

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._timeout, self._headers, self.header_hook, self._compression = state
        self._plain = {}

    def without_hook(self) -> CallSettings[Hook]:
        """Return settings like these, but for the header hook, which may know the client."""
        return CallSettings(
            timeout=self._timeout,
            headers=self._headers,
            header_hook=None,
            compression=self._compression,
        )

    def deadline_ns(self, timeout: float | None) -> int | None:
        """Return when a call must be over that begins now; see `CallOptions`.

        Parameters
        ----------
        timeout : float, seconds, or None
            The call's own; None for the client's, and infinity for no limit.

        Raises
        ------
        InvalidOption
            If the timeout makes no sense.
        """
        return deadline_after(self._timeout if timeout is None else seconds(timeout, "timeout"))

    def options(
        self,
        call: str,
        deadline_ns: int | None,
        hooked: HeaderSource | None,
        headers: HeaderSource | None,
        compression: Compression | None,
    ) -> CallOptions:
        """Return a call's options: the client's, over them the hook's, over them the call's own.

        Parameters
        ----------
        call : str
            What is called, for errors.
        deadline_ns : int or None
            As `deadline_ns` has returned it.
        hooked : mapping or iterable of pairs, optional
            What the header hook has returned.
        headers, compression
            As in `triton_fast.Client.infer`.

        Raises
        ------
        InvalidOption
            If one makes no sense.
        """
        if deadline_ns is None and hooked is None and headers is None and compression is UNSET:
            return self._plain.get(call) or self._new_plain(call)
        sent = self._headers
        if hooked is not None:
            sent += checked_headers(hooked, "what header_hook returns")
        if headers is not None:
            sent += checked_headers(headers)
        chosen = self._compression if compression is UNSET else _checked(compression)
        return CallOptions(deadline_ns, sent, chosen, call)

    def _new_plain(self, call: str) -> CallOptions:
        if len(self._plain) >= _MOST_PLAIN:
            self._plain.clear()
        options = self._plain[call] = CallOptions(None, self._headers, self._compression, call)
        return options


def _checked(compression: Any) -> Compression | None:
    checked: Compression | None = one_of(compression, "compression", ("gzip", "deflate", None))
    return checked
