"""The one exception of the package, with the hint of the command that it comes from."""

from __future__ import annotations

from typing import Optional


class HFTError(RuntimeError):
    """What cannot be done: one message that names the tensor or file, and a hint where there is one.

    Attributes:
        message: what is wrong, as ``hft-surgery`` says it behind ``error:``.
        hint: what to do about it, as it says behind ``hint:``.
    """

    def __init__(self, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[HFTError], tuple[str, Optional[str]]]:
        return type(self), (self.message, self.hint)
