"""A small shop whose background work runs on Celery: a sample for Kanchi, and the load of its end-to-end tests."""

from shop.app import app

__all__ = ["app"]
