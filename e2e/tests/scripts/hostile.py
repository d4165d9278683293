"""Publishes what no worker should: bad bodies between good events. Prints the ids of the good tasks: python -c … BIG.

BIG is the number of consecutive messages of 10 MB. All bodies go out as bytes, on RabbitMQ by the event exchange, on Redis
in kombu's envelope.
"""

import base64
import json
import pickle
import socket
import sys
import time
import uuid

from kombu import Exchange, Producer

from shop import app

on_redis = app.conf.broker_url.startswith("redis")
clock = 0


def event(kind, task_id, **fields):
    global clock
    clock += 1
    return {"type": kind, "uuid": task_id, "hostname": "hostile@host", "pid": 1, "clock": clock, "utcoffset": 0,
            "timestamp": time.time(), **fields}


def started(task_id, **fields):
    return event("task-received", task_id, **{"name": "hostile.good", "args": "()", "kwargs": "{}", "retries": 0,
                                              "root_id": task_id, "parent_id": None, "eta": None, "expires": None, **fields})


def text(value):
    return json.dumps(value).encode()


class Publisher:
    def __init__(self, connection):
        channel = connection.default_channel
        exchange = Exchange("celeryev", type="fanout" if on_redis else "topic", durable=True)
        self.producer = Producer(channel, exchange=exchange, auto_declare=False)
        self.client = channel.client if on_redis else None

    def raw(self, body, content_type="application/json", encoding="utf-8", **headers):
        if self.client is None:
            self.producer.publish(body, routing_key="task.multi", content_type=content_type, content_encoding=encoding,
                                  headers=headers, delivery_mode=1)
            return
        envelope = {"body": base64.b64encode(body).decode(), "content-encoding": encoding, "content-type": content_type,
                    "headers": headers, "properties": {
                        "delivery_mode": 1, "priority": 0, "body_encoding": "base64", "delivery_tag": str(uuid.uuid4()),
                        "delivery_info": {"exchange": "celeryev", "routing_key": "task.multi"}}}
        self.client.publish("/0.celeryev/task.multi", json.dumps(envelope))


good = []


def one_good(publisher):
    task_id = str(uuid.uuid4())
    good.append(task_id)
    publisher.raw(text([started(task_id), event("task-started", task_id), event("task-succeeded", task_id, result="1", runtime=0.1)]))


BAD = [
    (b'[{"type": "task-received", "uui', {}),
    (b"", {}),
    (b"\xff\xfe\x00 not utf-8", {}),
    (b'"a text"', {}),
    (b"[[1, 2], 3, null]", {}),
    (b'{"no": "type"}', {}),
    (b'{"type": 7}', {}),
    (text({"type": "task-started", "hostname": "h", "timestamp": 1.0, "clock": 1, "pid": 1}), {}),
    (b"x" * 100, {"compression": "application/x-gzip"}),
    (b"x" * 100, {"compression": "application/x-unheard-of"}),
]

ODD = [
    lambda i: started(i, args="nul \x00 and surrogate \ud800"),
    lambda i: started(i, args=float("nan"), retries=10**40),
    lambda i: {**started(i), "timestamp": "2026-11-21T08:00:00+00:00"},
    lambda i: {**started(i), "timestamp": "yesterday"},
    lambda i: {**started(i), "timestamp": -1e18},
    lambda i: {**started(i), "timestamp": 1e18},
    lambda i: {**started(i), "clock": "x", "pid": [], "hostname": {}},
    lambda i: started(i, name=""),
    lambda i: started(i, name="n" * 10_000),
    lambda i: event("task-unheard-of", i, anything=[1, {"a": None}]),
    lambda i: event("martian-landed", i),
]

# py-amqp gives up after a second in which a server, held back by its consumer, takes nothing.
patience = {} if on_redis else {"socket_settings": {socket.TCP_USER_TIMEOUT: 120_000}}

with app.connection_for_write(transport_options=patience) as connection:
    publisher = Publisher(connection)
    one_good(publisher)
    for body, headers in BAD:
        publisher.raw(body, **headers)
        one_good(publisher)
    publisher.raw(pickle.dumps([started("pickled")]), "application/x-python-serialize", "binary")
    publisher.raw(text({"type": "task-received"}), "application/x-unheard-of")
    if on_redis:
        publisher.client.publish("/0.celeryev/task.multi", "no envelope")
    for odd in ODD:
        for task_id in [str(uuid.uuid4()), "not a uuid", "", "i" * 10_000, 17, None]:
            publisher.raw(text([odd(task_id)]))
        one_good(publisher)
    # A bad element does not lose the good ones of its batch.
    task_id = str(uuid.uuid4())
    good.append(task_id)
    publisher.raw(text([7, started(task_id), {}, event("task-succeeded", task_id, result="1", runtime=0.1)]))
    # Only the id differs, so that the machine's time goes to the monitor.
    tail = b'", "exception": "X()", "traceback": "' + b"t" * 10_000_000 + b'"}]'
    for number in range(int(sys.argv[1])):
        head = text([event("task-failed", "")])[:-2].replace(b', "uuid": ""', b"") + b', "uuid": "'
        publisher.raw(head + str(uuid.uuid4()).encode() + tail)
        if number % 100 == 0:
            one_good(publisher)
    one_good(publisher)
print("\n".join(good))
