"""A small client that says in one word what became of a request: `python -m gfwemu.netlab.probe`."""
