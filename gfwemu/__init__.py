"""gfwemu: a packet-level DPI firewall emulator for the lab."""

__version__ = "0.1.0"
