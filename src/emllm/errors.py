"""What can go wrong through a user's doing, each one line that names the value and the limit.

Every error of this package that a user can cause derives from `EmllmError`; the command line turns
it into one line on stderr and exit code 2. Anything else is a bug and keeps its traceback.
"""


class EmllmError(Exception):
    """Something that the user asked for cannot be done; the message says what and why."""


class ConfigError(EmllmError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class SourceError(EmllmError, ValueError):
    """A document cannot be read: missing, empty, binary, of an unknown kind or too large."""


class ModelError(EmllmError, RuntimeError):
    """A model cannot be found or loaded, or computed something unusable (NaN logits)."""


class UnsupportedModelError(ModelError):
    """A model has no rotary positions, or attention that the memory cannot take over exactly."""


class InputError(EmllmError, ValueError):
    """Token ids or tensors do not fit this memory (padding, batch size, dtype, device, length)."""


class MissingExtraError(EmllmError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""


class StoreError(EmllmError, RuntimeError):
    """A stored memory cannot be opened, read or written: locked, damaged, of another model or format."""
