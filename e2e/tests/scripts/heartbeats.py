"""Plays one heartbeating worker for each of many key prefixes on one Redis: python -c … COUNT SECONDS."""

import json
import base64
import sys
import time
import uuid

import redis

from shop import app

count, seconds = int(sys.argv[1]), float(sys.argv[2])
client = redis.Redis.from_url(app.conf.broker_url)
begin, clock = time.monotonic(), 0
while time.monotonic() - begin < seconds:
    clock += 1
    for number in range(count):
        event = {"type": "worker-heartbeat", "hostname": f"celery@worker{number}", "pid": 100 + number, "clock": clock,
                 "utcoffset": 0, "timestamp": time.time(), "freq": 2.0, "active": 0, "processed": 7,
                 "loadavg": [0.1, 0.1, 0.1], "sw_ident": "py-celery", "sw_ver": "5.7.0", "sw_sys": "Linux"}
        body = base64.b64encode(json.dumps(event).encode()).decode()
        envelope = {"body": body, "content-encoding": "utf-8", "content-type": "application/json",
                    "headers": {"hostname": event["hostname"]},
                    "properties": {"delivery_mode": 1, "priority": 0, "body_encoding": "base64",
                                   "delivery_info": {"exchange": "celeryev", "routing_key": "worker.heartbeat"},
                                   "delivery_tag": str(uuid.uuid4())}}
        client.publish(f"b{number}:/0.celeryev/worker.heartbeat", json.dumps(envelope))
    time.sleep(2)
