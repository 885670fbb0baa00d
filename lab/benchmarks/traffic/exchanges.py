"""On the client: one connection after the other; how long each takes. Prints JSON, times in seconds.

`whole`: from connect to the outcome. `reaction`: from the ClientHello to the outcome. A short pause stands between two
connections, so that what one leaves behind does not count for the next.

argv: address, port, file of ClientHellos, how many connections, seconds at most.
"""

import json
import socket
import sys
import time
from itertools import cycle
from pathlib import Path

PAUSE = 0.0005
PATIENCE = 5.0


def main() -> None:
    address, port, hello_file, count, seconds = sys.argv[1:]
    hellos = cycle([bytes.fromhex(line) for line in Path(hello_file).read_text().split()])
    target = (address, int(port))
    outcomes: dict[str, int] = {}
    whole: list[float] = []
    reaction: list[float] = []
    clock = time.perf_counter
    end = clock() + float(seconds)
    for _ in range(int(count)):
        hello = next(hellos)
        with socket.socket() as connection:
            connection.settimeout(PATIENCE)
            began = sent = clock()
            try:
                connection.connect(target)
                sent = clock()
                connection.send(hello)
                outcome = "answer" if connection.recv(4096) else "end"
            except ConnectionResetError:
                outcome = "reset"
            except TimeoutError:
                outcome = "timeout"
            done = clock()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        whole.append(done - began)
        reaction.append(done - sent)
        if done > end:
            break
        time.sleep(PAUSE)
    print(json.dumps({"outcomes": outcomes, "whole": whole, "reaction": reaction}))


main()
