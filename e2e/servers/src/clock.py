"""Loaded by every Python that finds it on its path: the clock that events are stamped by is off by what a file says."""

import os
import time

true_time = time.time


def wrong_time():
    with open(os.environ["CLOCK_FILE"]) as file:
        return true_time() + float(file.read())


time.time = wrong_time
