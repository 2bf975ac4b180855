"""The engine of wsl, compiled from Rust (`rust/src/python/`); `stubtest` holds this file to it.

Arrays cross as C-contiguous buffers (NumPy arrays in, `bytes` out), tables through the Arrow
PyCapsule interface. Long calls release the interpreter, hear Ctrl-C and call `progress(done)`
about ten times a second. Friendlier forms of everything here are exported by `import wsl`.
"""

from collections.abc import Callable
from os import PathLike
from typing import Protocol, final

class ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

__version__: str

class WslError(Exception): ...
class UsageError(WslError): ...
class DataError(WslError): ...

@final
class Table:
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __len__(self) -> int: ...

# --- counts (rust/src/python/counts.rs) ---

# --- index (rust/src/python/index.rs) ---

# --- epoch (rust/src/python/epoch.rs) ---

# --- selection (rust/src/python/selection.rs) ---
