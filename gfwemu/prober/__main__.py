"""`python -m gfwemu.prober`: started by the daemon, which hands over one end of a socket."""

from __future__ import annotations

import argparse
import asyncio
import signal

from gfwemu.kernel.sandbox import die_with_parent
from gfwemu.prober.process import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gfwemu.prober")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--hops", type=int, default=1)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    die_with_parent()
    # A terminal sends it to all processes; the daemon alone obeys.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(options.fd, options.device, options.hops, options.time_scale, options.seed))


if __name__ == "__main__":
    main()
