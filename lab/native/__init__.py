"""Compiling the modules that packets go through, for lab/setup."""
