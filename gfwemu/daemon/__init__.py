"""The live censor as a process: the queue, the engine and the table, kept together until a signal ends them."""

from gfwemu.daemon.daemon import Daemon
from gfwemu.daemon.parts import DaemonOptions, Health, Outputs, Parts, Post

__all__ = ["Daemon", "DaemonOptions", "Health", "Outputs", "Parts", "Post"]
