"""The publisher's side: `python -m shop publish KIND COUNT | load RATE | journal | results | workers | purge QUEUE`."""

import argparse
import json
import os
import random
import sys
import time

from shop import app, journal
from shop.kinds import KINDS

# The demo's mix: mostly good news.
MIX = {"success": 40, "mail": 25, "chain": 8, "group": 6, "chord": 4, "retry-success": 6, "failure": 5, "progress": 3,
       "retry-failure": 1, "eta": 1, "rejected": 1}


def show(records):
    for entry in records:
        print(json.dumps(entry), flush=False)
    sys.stdout.flush()


def load(rate, seconds):
    """Publishes a steady mix of `rate` tasks a second, for ever or for some seconds."""
    begin, published = time.monotonic(), 0
    while not seconds or time.monotonic() - begin < seconds:
        kind = random.choices(list(MIX), weights=MIX.values())[0]
        published += sum(1 for _ in KINDS[kind](1))
        time.sleep(max(0.0, published / rate - (time.monotonic() - begin)))
    print(f"published {published} tasks", flush=True)


def results():
    """Yields what the result backend holds; Redis backends only."""
    client = app.backend.client
    for key in client.scan_iter("celery-task-meta-*", count=1000):
        value = client.get(key)
        if value:
            meta = app.backend.decode(value)
            yield {name: meta.get(name) for name in ("task_id", "status", "result", "traceback", "parent_id", "retries")}


def main():
    parser = argparse.ArgumentParser(prog="shop")
    commands = parser.add_subparsers(dest="command", required=True)
    publish = commands.add_parser("publish", help="publish tasks of one kind; prints one line per task")
    publish.add_argument("kind", choices=sorted(KINDS))
    publish.add_argument("count", type=int)
    steady = commands.add_parser("load", help="publish a steady mix")
    steady.add_argument("rate", type=float, help="tasks a second")
    steady.add_argument("--seconds", type=float, default=0, help="end after so long")
    commands.add_parser("journal", help="print what the tasks really did")
    commands.add_parser("results", help="print what the result backend holds")
    commands.add_parser("workers", help="print the workers that answer")
    purge = commands.add_parser("purge", help="empty a queue")
    purge.add_argument("queue")
    options = parser.parse_args()

    if options.command == "publish":
        show(KINDS[options.kind](options.count))
    elif options.command == "load":
        load(options.rate, options.seconds)
    elif options.command == "journal":
        show(journal.read())
    elif options.command == "results":
        show(results())
    elif options.command == "workers":
        show(sorted(app.control.inspect(timeout=2).ping() or {}))
    elif options.command == "purge":
        with app.connection_for_write() as connection:
            print(connection.default_channel.queue_purge(options.queue))


if __name__ == "__main__":
    main()
    # Not by the usual way out: there, results of canvases unsubscribe from a Redis backend after Python has taken its
    # modules away, and complain.
    sys.stdout.flush()
    os._exit(0)
