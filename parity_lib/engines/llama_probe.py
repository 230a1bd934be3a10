"""Says what build of the reference is installed, without a model; meant to live in a worker."""

from __future__ import annotations

from parity_lib.engines.llama_abi import load


class Probe:
    """The loaded and checked library. Raises ``PinError`` if it is not the pinned one."""

    def __init__(self) -> None:
        self._library = load()

    def describe(self) -> dict[str, str]:
        """Return version, commit, leg, compiler and compiled features, each as text."""
        receipt = self._library.receipt
        return {
            "version": receipt.version,
            "commit": self._library.commit,
            "leg": receipt.leg,
            "compiler": receipt.compiler,
            "system_info": self._library.system_info,
        }
