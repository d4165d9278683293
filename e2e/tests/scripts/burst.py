"""Publishes the events of many tasks as a worker would, and prints their ids: python -c … RUN TASKS [confirmed].

Four events a task (received, started, progress, succeeded), in batches of up to 24 as Celery's worker sends them, with
the tasks of a batch interleaved. `confirmed`: ends when RabbitMQ has said that it has every message.
"""

import sys
import time
import uuid

from kombu import Exchange, Producer

from shop import app

run, tasks = sys.argv[1], int(sys.argv[2])
ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run}/{number}")) for number in range(tasks)]
# On Redis a declaration stays in this process, which must know that it is a fanout; on RabbitMQ the worker has declared it.
on_redis = app.conf.broker_url.startswith("redis")
exchange = Exchange("celeryev", type="fanout" if on_redis else "topic", durable=True)
clock, host = 0, f"burst@{run}"


def event(kind, task_id, **fields):
    global clock
    clock += 1
    return {"type": kind, "uuid": task_id, "hostname": host, "pid": 4711, "clock": clock, "utcoffset": 0,
            "timestamp": time.time(), **fields}


options = {"confirm_publish": True} if "confirmed" in sys.argv[3:] else {}
with app.connection_for_write(transport_options=options) as connection:
    producer = Producer(connection.default_channel, exchange=exchange, serializer="json", auto_declare=on_redis)
    for start in range(0, tasks, 6):
        part = ids[start:start + 6]
        batch = [event("task-received", i, name="burst.task", args="(1,)", kwargs="{}", root_id=i, parent_id=None,
                       retries=0, eta=None, expires=None) for i in part]
        batch += [event("task-started", i) for i in part]
        batch += [event("task-progress", i, done=1) for i in part]
        batch += [event("task-succeeded", i, result="2", runtime=0.01) for i in part]
        producer.publish(batch, routing_key="task.multi", headers={"hostname": host}, delivery_mode=1)
print("\n".join(ids))
