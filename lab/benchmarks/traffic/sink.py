"""On a server: takes UDP datagrams and reads none, so that nobody sends errors back, until stdin ends. argv: port."""

import socket
import sys


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("0.0.0.0", int(sys.argv[1])))
        print("ready", flush=True)
        sys.stdin.read()


main()
