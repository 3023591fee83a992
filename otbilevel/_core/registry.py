"""One row per method: lookup, messages, the documentation's tables, the test and the benchmark matrices come from it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of a registry.

    Attributes
    ----------
    name : str
        What the user passes as ``method=``.
    summary : str
        One line for the documentation's table.
    solve : callable
        The method itself.
    options : type
        A frozen dataclass of the settings that ``options=`` may hold; it checks them when made.
    backends : tuple of str
        The array libraries that the method is tested with.
    reference : str
        Where the method comes from.
    max_iter : int
        Default iteration limit.
    """

    name: str
    summary: str
    solve: Callable[..., Any]
    options: type
    backends: tuple[str, ...]
    reference: str
    max_iter: int

    def make_options(self, given: Mapping[str, Any] | None) -> Any:
        """Return the method's settings from what the user gave.

        Raises
        ------
        TypeError
            When `given` is not a mapping or holds an unknown key; the nearest valid one is named.
        """
        if given is None:
            return self.options()
        if not isinstance(given, Mapping):
            msg = f"options must be a dict, got {type(given).__name__}"
            raise TypeError(msg)
        known = [field.name for field in dataclasses.fields(self.options)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}? " if near else ""
                valid = f"Valid options: {', '.join(sorted(known))}" if known else "it takes none"
                msg = f"unknown option {key!r} for method {self.name!r}: {hint}{valid}"
                raise TypeError(msg)
        return self.options(**given)


class Registry:
    """The methods of one entry function, by name.

    Parameters
    ----------
    entry : str
        The entry function that the methods belong to, for messages.
    """

    def __init__(self, entry: str) -> None:
        self.entry = entry
        self._rows: dict[str, Method] = {}

    def add(self, row: Method) -> None:
        """Add a row; a second one of the same name is an error."""
        if row.name in self._rows:
            msg = f"{self.entry} already has a method {row.name!r}"
            raise ValueError(msg)
        self._rows[row.name] = row

    def __getitem__(self, name: object) -> Method:
        """Look a method up; the error for an unknown name lists the known ones."""
        if not isinstance(name, str) or name not in self._rows:
            msg = f"unknown method {name!r} for {self.entry}: choose one of {', '.join(map(repr, self._rows))}"
            raise ValueError(msg)
        return self._rows[name]

    def __iter__(self) -> Iterator[Method]:
        return iter(self._rows.values())

    def table(self) -> str:
        """The methods as a Markdown table."""
        head = ["| method | what it does | options | array libraries tested | source |", "|---|---|---|---|---|"]
        rows = []
        for row in self:
            options = ", ".join(f"`{field.name}`" for field in dataclasses.fields(row.options))
            rows.append(f'| `"{row.name}"` | {row.summary} | {options} | {", ".join(row.backends)} | {row.reference} |')
        return "\n".join(head + rows) + "\n"
