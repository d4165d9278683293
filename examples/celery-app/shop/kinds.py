"""Publishes tasks of one kind and says what was published.

Each function publishes about `count` tasks and yields one record per task: its id, its name, its part in a canvas
(`role`), its arguments and its queue. Ids are chosen here, before publishing, where Celery allows it.
"""

import os
import time
import uuid

from celery import chain, chord, group

from shop import journal, tasks
from shop.app import app

# Seconds until a task of the kinds `eta` and `expired` becomes due.
ETA_SECONDS = 3
EXPIRES_SECONDS = 2
# Seconds that a task of the kind `busy` runs.
BUSY_SECONDS = float(os.environ.get("BUSY_SECONDS", "20"))


def record(kind, role, result_id, signature, queue="orders", **more):
    return {"kind": kind, "role": role, "id": result_id, "name": signature.task, "args": list(signature.args),
            "kwargs": dict(signature.kwargs), "queue": queue, **more}


def plain(kind, make, **options):
    """Returns a publisher of single tasks."""

    def publish(count):
        for number in range(count):
            signature, task_id = make(number), str(uuid.uuid4())
            signature.apply_async(task_id=task_id, **options)
            yield record(kind, kind, task_id, signature, options.get("queue", "orders"))

    return publish


def revoked(count):
    """Revoked by id first, published then: no worker can be faster than the revocation."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    for start in range(0, count, 500):
        part = ids[start:start + 500]
        replies = app.control.revoke(part, reply=True, timeout=5)
        if not replies:
            raise SystemExit("no worker confirmed the revocation")
    for number, task_id in enumerate(ids):
        signature = tasks.add.s(number, 1)
        signature.apply_async(task_id=task_id)
        yield record("revoked", "revoked", task_id, signature)


def terminated(count):
    """Started, seen in the journal, then terminated by SIGTERM; a few at a time, so that each one gets a process."""
    waiting, position, given_up = {}, 0, time.monotonic() + 30 + count
    for number in range(count):
        signature, task_id = tasks.hang.s(600 + number), str(uuid.uuid4())
        signature.apply_async(task_id=task_id)
        waiting[task_id] = record("terminated", "terminated", task_id, signature)
    while waiting:
        if time.monotonic() > given_up:
            raise SystemExit(f"{len(waiting)} tasks never started")
        started = []
        for entry in journal.read(position):
            position += 1
            if entry["step"] == "ran" and entry["id"] in waiting:
                started.append(entry["id"])
        if started:
            app.control.revoke(started, terminate=True, signal="SIGTERM")
            yield from (waiting.pop(task_id) for task_id in started)
        else:
            time.sleep(0.05)


def expired(count):
    """Due to expire in a queue that no worker consumes; afterwards a worker is told to consume it."""
    for number in range(count):
        signature, task_id = tasks.add.s(number, 2), str(uuid.uuid4())
        signature.apply_async(task_id=task_id, queue="backlog", expires=EXPIRES_SECONDS)
        yield record("expired", "expired", task_id, signature, "backlog")
    time.sleep(EXPIRES_SECONDS + 1)
    app.control.add_consumer("backlog", reply=True)
    # Redis keeps expired messages; a worker takes them out and says so, when it has done what came before. RabbitMQ has
    # dropped them.
    drained = time.monotonic() + 300 + count / 2
    while depth("backlog") and time.monotonic() < drained:
        time.sleep(0.2)
    app.control.cancel_consumer("backlog", reply=True)


def depth(queue):
    """Counts the messages that wait in a queue; a queue that does not exist has none."""
    with app.connection_for_read() as connection:
        try:
            return connection.default_channel.queue_declare(queue, passive=True).message_count
        except Exception as error:  # a missing queue has another exception class in each transport
            if "404" in str(error) or "NOT_FOUND" in str(error) or "not exist" in str(error):
                return 0
            raise


def chains(count):
    for number in range(-(-count // 3)):
        parts = [tasks.add.s(number, 1), tasks.add.s(10), tasks.add.s(100)]
        last = chain(*parts).apply_async()
        ids = [last.parent.parent.id, last.parent.id, last.id]
        # A later link is called with the result of the one before it in front.
        calls = [(number, 1), (number + 1, 10), (number + 11, 100)]
        for place, (task_id, part, args) in enumerate(zip(ids, parts, calls), start=1):
            parent = ids[place - 2] if place > 1 else None
            yield {**record("chain", f"chain.{place}", task_id, part), "args": list(args), "root": ids[0], "parent": parent}


def groups(count):
    for number in range(-(-count // 3)):
        parts = [tasks.add.s(number, place) for place in range(3)]
        result = group(parts).apply_async()
        for child, part in zip(result.children, parts):
            yield record("group", "group.member", child.id, part, group=result.id)


def chords(count):
    for number in range(-(-count // 4)):
        parts = [tasks.add.s(number, place) for place in range(3)]
        body = chord(parts, tasks.total.s()).apply_async()
        for child, part in zip(body.parent.children, parts):
            yield record("chord", "chord.header", child.id, part, group=body.parent.id)
        body_call = tasks.total.s([number, number + 1, number + 2])
        yield record("chord", "chord.body", body.id, body_call)


KINDS = {
    "success": plain("success", lambda n: tasks.add.s(n, 1)),
    "mail": plain("mail", lambda n: tasks.send_mail.s(f"customer{n}@example.com", subject=f"Order {n}"), queue="mail"),
    "failure": plain("failure", lambda n: tasks.charge.s(n)),
    "retry-success": plain("retry-success", lambda n: tasks.reserve_stock.s(n)),
    "retry-failure": plain("retry-failure", lambda n: tasks.call_carrier.s(n)),
    "revoked": revoked,
    "terminated": terminated,
    "expired": expired,
    "rejected": plain("rejected", lambda n: tasks.refuse.s(n)),
    "ignored": plain("ignored", lambda n: tasks.skip.s(n)),
    "chain": chains,
    "group": groups,
    "chord": chords,
    "eta": plain("eta", lambda n: tasks.add.s(n, 3), countdown=ETA_SECONDS),
    "progress": plain("progress", lambda n: tasks.import_catalog.s()),
    "busy": plain("busy", lambda n: tasks.hang.s(BUSY_SECONDS)),
    "backlog": plain("backlog", lambda n: tasks.add.s(n, 4), queue="backlog"),
}
