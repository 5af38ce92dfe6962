"""Signals reach a test as they reach a command in a terminal."""

import signal

import pytest

_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Tests in the background of a shell have Ctrl-C ignored, and under nohup a hang-up too."""
    before = {number: signal.signal(number, handler) for number, handler in _HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
