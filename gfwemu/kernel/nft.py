"""libnftables, called directly: a transaction is one buffer, and no process is started."""

from __future__ import annotations

import ctypes
import json
from typing import Any

from gfwemu.errors import CapabilityError, GfwemuError

# <nftables/libnftables.h>
_OUTPUT_JSON = 1 << 4
_LIBRARY = "libnftables.so.1"


class NftError(GfwemuError):
    """nftables refused a transaction; the text is its own."""


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise CapabilityError(
            f"{_LIBRARY} cannot be loaded.", "Install it: apt-get install libnftables1 (dnf install nftables-libs)."
        ) from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    for name in ("get_error_buffer", "get_output_buffer", "buffer_error", "buffer_output", "free"):
        getattr(library, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


class Nft:
    """One libnftables context. Not for use from several threads."""

    def __init__(self) -> None:
        self._library = _library()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NftError("libnftables gave no context")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str) -> str:
        """Runs the commands as one transaction, all or none. Returns the output; raises NftError."""
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        error: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftError(f"nftables: {error.decode(errors='replace').strip()}")
        return output.decode(errors="replace")

    def json(self, command: str) -> list[dict[str, Any]]:
        """Runs one listing command; returns nft's objects (libnftables-json(5)) without the metainfo."""
        self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)
        try:
            text = self.run(command)
        finally:
            self._library.nft_ctx_output_set_flags(self._context, 0)
        objects: list[dict[str, Any]] = json.loads(text)["nftables"] if text else []
        return [item for item in objects if "metainfo" not in item]

    def check(self, commands: str) -> None:
        """Has the kernel check the transaction without committing it. Raises NftError."""
        self._library.nft_ctx_set_dry_run(self._context, True)
        try:
            self.run(commands)
        finally:
            self._library.nft_ctx_set_dry_run(self._context, False)
