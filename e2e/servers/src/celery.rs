//! A real celery for tests.
