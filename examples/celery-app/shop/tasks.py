"""The tasks: one for each way in which a Celery task can live and end."""

import functools
import time

from celery import Task
from celery.exceptions import Ignore, Reject

from shop import journal
from shop.app import app


class PaymentDeclined(Exception):
    """An error of the application's own, to be seen by its name in a monitor."""


class Journaled(Task):
    """Writes down what each attempt did: `ran` at its start, then `returned`, `raised` or nothing if it was killed."""

    abstract = True

    def note(self, step, **facts):
        request = self.request
        journal.write({
            "step": step,
            "id": request.id,
            "name": self.name,
            "attempt": request.retries,
            "worker": request.hostname,
            "root": request.root_id,
            "parent": request.parent_id,
            "args": list(request.args or []),
            "kwargs": request.kwargs or {},
            **facts,
        })


def shop_task(**options):
    """Registers a bound task that keeps the journal."""

    def register(function):
        @functools.wraps(function)
        def journaled(self, *args, **kwargs):
            self.note("ran")
            try:
                result = function(self, *args, **kwargs)
            except Exception as error:
                self.note("raised", error=type(error).__name__)
                raise
            self.note("returned", result=result)
            return result

        return app.task(bind=True, base=Journaled, **options)(journaled)

    return register


@shop_task()
def add(self, x, y):
    """Succeeds: a sum, as in every Celery tutorial."""
    return x + y


@shop_task()
def total(self, numbers):
    """Succeeds: the body of a chord."""
    return sum(numbers)


@shop_task()
def send_mail(self, to, subject="Your order", seconds=0.0):
    """Succeeds after a while, on a queue of its own."""
    time.sleep(seconds)
    return f"{subject} to {to}"


@shop_task()
def charge(self, order):
    """Fails with a traceback two calls deep."""
    decline(order)


def decline(order):
    raise PaymentDeclined(f"card of order {order} was declined")


@shop_task(max_retries=3)
def reserve_stock(self, order, failures=1):
    """Fails `failures` times, then succeeds: a retry at once."""
    if self.request.retries < failures:
        raise self.retry(exc=ConnectionError(f"warehouse did not answer for order {order}"), countdown=0)
    return f"order {order} reserved at attempt {self.request.retries}"


@shop_task(max_retries=2)
def call_carrier(self, order):
    """Fails at every attempt until its retries are used up: two retries, half a second apart."""
    raise self.retry(exc=TimeoutError(f"carrier is down for order {order}"), countdown=0.5)


@shop_task()
def hang(self, seconds=600):
    """Runs until it is terminated, or for a while."""
    time.sleep(seconds)
    return "was not terminated"


@shop_task(acks_late=True)
def refuse(self, order):
    """Rejects its message for good (acknowledged late, or rejecting would have no effect)."""
    raise Reject(f"order {order} is not ours", requeue=False)


@shop_task()
def skip(self, order):
    """Ends without a state: Celery sends no event for it."""
    raise Ignore()


@shop_task()
def import_catalog(self, rows=4):
    """Reports its progress: by Celery's own custom event, and by the events of Kanchi's SDK."""
    with self.app.events.default_dispatcher() as dispatcher:
        steps = [{"key": "read", "label": "Read", "order": 1}, {"key": "store", "label": "Store", "total": rows, "order": 2}]
        dispatcher.send("kanchi-task-steps", task_id=self.request.id, task_name=self.name, steps=steps)
        for row in range(1, rows + 1):
            percent = 100.0 * row / rows
            self.send_event("task-progress", done=row, total=rows)
            dispatcher.send("kanchi-task-progress", task_id=self.request.id, task_name=self.name, progress=percent,
                            step_key="store", message=f"row {row} of {rows}")
    return rows
