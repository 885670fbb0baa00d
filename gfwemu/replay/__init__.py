"""Runs the engine over a capture, on the capture's own timestamps."""
