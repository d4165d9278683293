//! Celery events and the task state machine: pure, no I/O.
