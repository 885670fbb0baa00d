"""`python -m gfwemu` and the `gfwemu` script."""

from gfwemu.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
