"""How a checker reaches a learner's function: by name, through one small object, with plain data.

A checker never holds the function itself. It says ``session.call("bytes_of", 7, 4)`` and gets the result, or a :class:`LearnerFault`
whose text is one sentence for the learner. :class:`LocalSession` calls the function in the learner's own kernel; a session that sends the
same call to a sandboxed process can take its place, and no checker changes. So arguments and results are plain data only:
numbers, text, lists, tuples, dicts and tensors.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

MAX_DEPTH = 20


class LearnerFault(Exception):
    """The learner's function did what it should not. The text is one sentence for the learner."""


class NotAttempted(LearnerFault):
    """The learner's function is not written yet."""


class Session(Protocol):
    """What a checker is given."""

    def call(self, name: str, *args: Any) -> Any:
        """The result of the learner's function ``name``, as plain data. Raises :class:`LearnerFault`."""


class LocalSession:
    """Calls functions in this process.

    >>> LocalSession({"double": lambda x: 2 * x}).call("double", 4)
    8
    >>> LocalSession({"double": lambda x: {x, x}}).call("double", 4)
    Traceback (most recent call last):
    course_utils.session.LearnerFault: double(4) returned an object of type set, where a number, text, list, dict or tensor is due.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.functions = dict(functions)

    def call(self, name: str, *args: Any) -> Any:
        """The result of the function ``name``, called with a copy of ``args``.

        Raises:
            NotAttempted: the function is a stub, or returns nothing.
            LearnerFault: it raises, changes its input, or returns what is no plain data.
        """
        function = self.functions[name]
        shown = show_call(name, args)
        given = plain(args)
        try:
            result = function(*given)
        except KeyboardInterrupt:  # the learner has pressed stop
            raise
        except BaseException as error:  # sys.exit() too
            line = own_line(error, function)  # a stub raises NotImplementedError itself; torch does, too, for what it can't do
            if isinstance(error, NotImplementedError) and (line is None or not line.line or "NotImplementedError" in line.line):
                raise NotAttempted(f"{name} is still to be written.") from None
            raise LearnerFault(f"{shown} raised {describe_exception(error, line)}") from None
        if result is None or result is ...:
            raise NotAttempted(f"{shown} returned {show(result)}: write its body, or is a `return` missing?")
        if not same(given, args):
            raise LearnerFault(f"{shown} changed its input: make a copy and change that.")
        try:
            return plain(result)
        except TypeError as error:
            raise LearnerFault(f"{shown} returned {error}") from None


def own_line(error: BaseException, function: Callable[..., Any]) -> traceback.FrameSummary | None:
    """The last line of the learner's own code on the way to the error: in the cell, or file, that defines the function."""
    try:
        file = function.__code__.co_filename
    except Exception:  # none of Python's functions; an object of the learner's own class may raise anything
        return None
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return own[-1] if own else None


def describe_exception(error: BaseException, line: traceback.FrameSummary | None) -> str:
    """Name, message and line, without a path."""
    text = " ".join("".join(traceback.format_exception_only(error)).split()).rstrip(".")
    text = text if len(text) <= 200 else text[:197] + "..."
    if line is None:
        return f"{text}."
    return f"{text}, in line {line.lineno} of your code{f': {line.line}' if line.line else '.'}"


# --- plain data --------------------------------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor or parameter, and nothing derived from them; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter)


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of ``value`` that shares nothing with it and behaves as its type does, NumPy scalars turned into Python's.

    A class derived from a number, a list or a tensor can say of itself that it equals anything. So every value is read by the methods
    of the type itself, and what comes back is of exactly that type.

    Raises TypeError, with the end of the sentence "it returned ...", for anything but plain data. Its type says what a value is, and
    not isinstance, which asks the value, too.

    >>> plain([1, {"a": (2.5, "text")}])
    [1, {'a': (2.5, 'text')}]
    """
    if depth > MAX_DEPTH:
        raise TypeError(f"lists within lists, more than {MAX_DEPTH} deep.")
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(type(value), numpy.generic):
        value = numpy.generic.item(value)
    elif numpy is not None and type(value) is numpy.ndarray and value.shape == ():
        value = value.item()
    if value is None or type(value) is bool:
        return value
    if issubclass(type(value), int):
        return int.__int__(value)
    if issubclass(type(value), float):
        return float.__float__(value)
    if issubclass(type(value), str):
        return str.__str__(value)
    if issubclass(type(value), list):
        return [plain(item, depth + 1) for item in list.__iter__(value)]
    if issubclass(type(value), tuple):
        return tuple(plain(item, depth + 1) for item in tuple.__iter__(value))
    if issubclass(type(value), dict):
        return {plain(key, depth + 1): plain(item, depth + 1) for key, item in dict.items(value)}
    if is_tensor(value):
        return sys.modules["torch"].Tensor.detach(value).clone()
    raise TypeError(f"an object of type {type(value).__name__}, where a number, text, list, dict or tensor is due.")


def kind(value: Any) -> str:
    """In words: what sort of plain data this is."""
    if is_tensor(value):
        return "a tensor"
    names = {bool: "True or False", str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "a dict"}
    return next((name for known, name in names.items() if isinstance(value, known)), "None")


def difference_in_kind(got: Any, due: Any) -> str:
    """How ``got`` differs from ``due`` in type, length, keys, shape, dtype or device, values apart; "" if it does not.

    >>> difference_in_kind("4", 4)
    "text ('4') where a number is due"
    >>> difference_in_kind((1, 2, 3), (1, 2)), difference_in_kind(4, 4.5)
    ('3 values where 2 are due', '')
    """
    if is_tensor(got) and kind(due) in ("a number", "True or False") and got.shape == () and got.device.type != "meta":
        got = got.item()
    if kind(got) != kind(due):
        return f"{kind(got)} ({show(got)}) where {kind(due)} is due"
    if is_tensor(due):
        if got.shape != due.shape:
            return f"a tensor of shape {tuple(got.shape)} where {tuple(due.shape)} is due"
        for what in ("dtype", "device", "layout"):
            if getattr(got, what) != getattr(due, what):
                return f"a tensor with {what} {getattr(got, what)} where {getattr(due, what)} is due"
    if isinstance(due, dict):
        if got.keys() != due.keys():
            return f"a dict with keys {show(list(got))} where {show(list(due))} are due"
        return next(filter(None, (difference_in_kind(got[key], due[key]) for key in due)), "")
    if isinstance(due, (list, tuple)):
        if len(got) != len(due):
            return f"{len(got)} values where {len(due)} are due"
        return next(filter(None, map(difference_in_kind, got, due)), "")
    return ""


def same(got: Any, due: Any, tolerance: float = 0.0) -> bool:
    """Whether ``got`` is ``due``: same kind, and every number within ``tolerance``, relative or absolute; NaN equals NaN.

    Two whole numbers are the same or not, whatever the tolerance: they are counts and codes.

    >>> same([1, 2.0], (1, 2)), same(0.1 + 0.2, 0.3), same(0.1 + 0.2, 0.3, tolerance=1e-9), same(1001, 1000, tolerance=0.1)
    (True, False, True, False)
    """
    if difference_in_kind(got, due):
        return False
    if is_tensor(due):
        if not due.is_floating_point():
            return bool((got == due).all())
        return sys.modules["torch"].allclose(got.double(), due.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(due, dict):
        return all(same(got[key], due[key], tolerance) for key in due)
    if isinstance(due, (list, tuple)):
        return all(same(one, other, tolerance) for one, other in zip(got, due, strict=True))
    if isinstance(due, (int, float)):
        got = got.item() if is_tensor(got) else got
        if isinstance(got, int) and isinstance(due, int):
            return got == due
        if got == due or (got != got and due != due):
            return True
        try:
            return math.isclose(got, due, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an integer beyond the range of a float
            return False
    return got == due


def first_difference(got: Any, due: Any, tolerance: float = 0.0, place: str = "") -> str:
    """The end of "it returned ...": the first number that is not as it should be, with its place if there are many.

    >>> first_difference([1, [2.5, 3]], [1, [2.5, 4]])
    '3 at [1][1] where 4 is due'
    """
    many = isinstance(due, (list, tuple)) or (is_tensor(due) and due.ndim > 0)
    if many:
        first = next(i for i in range(len(due)) if not same(got[i], due[i], tolerance))
        return first_difference(got[first], due[first], tolerance, f"{place}[{first}]")
    got, due = (value.item() if is_tensor(value) else value for value in (got, due))
    return f"{show(got)}{f' at {place}' if place else ''} where {show(due)} is due"


def show(value: Any) -> str:
    """A value as a learner would write it, cut to one short line. A tensor is its numbers if they fit there, and else its shape.

    What raises where it is shown, as an object of the learner's own class may do, is named by its type.

    >>> show(7000000000), show(0.5), show([1, 2]), show(range(3))
    ('7_000_000_000', '0.5', '[1, 2]', 'range(0, 3)')
    """
    try:
        return _written(value)
    except Exception:
        return f"an object of type {type(value).__name__} that can't be shown"


def _written(value: Any) -> str:
    """What `show` gives, if nothing raises."""
    if is_tensor(value) and value.ndim:
        text = " ".join(repr(value).split()) if value.numel() <= 16 else ""
        return text if 0 < len(text) <= 60 else f"tensor of shape {tuple(value.shape)}"
    if value is ...:
        return "`...`"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a whole number of more than 30 digits"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return format(value, "_")
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def show_call(name: str, args: tuple[Any, ...]) -> str:
    """The call as a learner would write it: ``bytes_of(7, 4)``."""
    return f"{name}({', '.join(map(show, args))})"
