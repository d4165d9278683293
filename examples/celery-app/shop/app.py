"""The Celery application. Everything that differs between deployments comes from the environment (see README.md)."""

import os
import pathlib

from celery import Celery
from celery.signals import worker_ready, worker_shutdown
from kombu import Queue

READY_FILE = pathlib.Path(os.environ.get("READY_FILE", "/tmp/ready"))


def transport_options(broker_url):
    """Options of the broker's transport; a key prefix exists on Redis only."""
    prefix = os.environ.get("GLOBAL_KEYPREFIX", "")
    return {"global_keyprefix": prefix} if prefix and broker_url.startswith("redis") else {}


broker_url = os.environ.get("BROKER_URL", "amqp://guest:guest@localhost:5672//")

app = Celery("shop", include=["shop.tasks"])
app.conf.update(
    broker_url=broker_url,
    broker_connection_retry_on_startup=True,
    broker_transport_options=transport_options(broker_url),
    result_backend=os.environ.get("RESULT_BACKEND") or None,
    result_extended=True,
    # These two make a deployment visible: workers tell what happens to tasks, publishers tell what was sent.
    worker_send_task_events=os.environ.get("TASK_EVENTS", "1") == "1",
    task_send_sent_event=True,
    task_default_queue="orders",
    # `backlog` has no worker unless one is told to consume it: its depth is then known exactly.
    task_queues=[Queue("orders"), Queue("mail"), Queue("backlog")],
    task_routes={"shop.tasks.send_mail": {"queue": "mail"}},
    # A revoked task must not wait behind ten others, and a killed process must not take reserved tasks with it.
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "4")),
    worker_hijack_root_logger=False,
    timezone="UTC",
)


@worker_ready.connect
def mark_ready(**_):
    """Lets a readiness probe see, without a broker round trip, that the worker consumes."""
    READY_FILE.touch()


@worker_shutdown.connect
def mark_gone(**_):
    """Takes the mark away when the worker ends by itself."""
    READY_FILE.unlink(missing_ok=True)
