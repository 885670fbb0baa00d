"""gfwemu: a packet-level DPI firewall emulator for the lab."""

from gfwemu.native import install

__version__ = "0.1.0"

interpreted = install()
"""Why the sources run and not what was compiled of them, "" where that does."""
