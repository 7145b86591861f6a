"""Many simulated agents in one process: an asyncio server that answers for each path of its own.

    python fleet_agents.py NODES SLOW DEAD OUTLIERS SLOW_S [hang up]

`/nodeI/v1/report` is node I, a server of 8 H100 with all that the probes read of one: the first SLOW answer after
SLOW_S seconds, the next DEAD never, the next OUTLIERS differ each in one way. With "hang up", the dead end their
connections when all others have answered. The first line on stdout is the port; it serves until it is killed.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from fleets import facts_of_a_node
from health_trees import machines, snapshot_of

MACHINE = "8xH100 SXM with InfiniBand"


def whole_snapshot() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return snapshot_of(machines()[MACHINE](), Path(folder) / "tree").document()


def report(snapshot: dict[str, Any], number: int, fault: int | None) -> dict[str, Any]:
    """The report of a node. Figures spread as among healthy nodes.

    Args:
        fault: which of three it has.
    """
    host, rng = f"n{number:04}", random.Random(number)
    facts, own = dict(snapshot["facts"]), facts_of_a_node(rng)
    facts |= {name: own[name] for name in ("stress", "memory", "kernel")}
    facts["gpus"] = [gpu | {"temperature": {"gpu_c": round(rng.gauss(55, 4))}} for gpu in facts["gpus"]]
    if fault == 0:
        own["stress"]["devices"][5]["matmul"] = [{"device": "bfloat16", "tflops": 600.0}]
    elif fault == 1:
        facts["nvidia"] = facts["nvidia"] | {"driver": "550.90.07"}
    elif fault == 2:
        facts["infiniband"] = facts["infiniband"] | {"active_ports": 1}
    document = {"host": host, "status": "healthy", "findings": [], "skipped": [], "duration_s": 0.1}
    return {"schema_version": 1, **document, "snapshot": snapshot | {"host": host, "facts": facts}}


async def main(nodes: int, slow: int, dead: int, outliers: int, slow_s: float, hangs_up: bool) -> None:
    snapshot, first = whole_snapshot(), slow + dead
    unanswered, all_answered = {*range(slow), *range(first, nodes)}, asyncio.Event()
    faults = {first + which: which % 3 for which in range(outliers)}
    bodies = [gzip.compress(json.dumps(report(snapshot, n, faults.get(n))).encode(), 1) for n in range(nodes)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            number = int(head.split(b"/node", 1)[1].split(b"/", 1)[0])
            if slow <= number < first:
                await (all_answered.wait() if hangs_up else asyncio.sleep(3600))
                return
            if number < slow:
                await asyncio.sleep(slow_s)
            body = bodies[number]
            lines = ("HTTP/1.1 200 OK", "Content-Encoding: gzip", f"Content-Length: {len(body)}", "", "")
            writer.write("\r\n".join(lines).encode() + body)
            await writer.drain()
            unanswered.discard(number)
            if not unanswered:
                all_answered.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*(int(word) for word in sys.argv[1:5]), slow_s=float(sys.argv[5]), hangs_up=bool(sys.argv[6:])))
