"""Work beside the main thread's."""

import threading
import time

import pytest

from anyprec.background import Background, ahead


def test_calls_run_in_order_and_are_done_when_the_context_ends():
    done = []
    with Background(1) as background:
        for i in range(20):
            background.run(done.append, i)
    assert done == list(range(20))


def test_few_calls_wait_at_a_time():
    go, started = threading.Event(), []

    def call(i):
        started.append(i)
        go.wait()

    with Background(2) as background:
        for i in range(4):
            background.run(call, i)
        blocked = threading.Thread(target=background.run, args=(call, 4))
        blocked.start()
        time.sleep(0.05)
        assert blocked.is_alive() and sorted(started) == [0, 1]
        go.set()
        blocked.join()
    assert sorted(started) == [0, 1, 2, 3, 4]


def test_what_a_call_raises_is_raised_here():
    def fail(text):
        raise OSError(text)

    with pytest.raises(OSError, match="the first"), Background(1) as background:
        background.run(fail, "the first")
        background.run(fail, "the second")


def test_what_was_given_is_done_when_the_body_is_interrupted():
    done = []

    def slowly(i):
        time.sleep(0.02)
        done.append(i)

    with pytest.raises(KeyboardInterrupt), Background(1) as background:
        background.run(slowly, 0)
        background.run(slowly, 1)
        raise KeyboardInterrupt
    assert done == [0, 1]


def test_an_error_of_the_body_is_not_hidden_by_one_of_a_call():
    def fail():
        raise OSError("a call's")

    with pytest.raises(KeyError), Background(1) as background:
        background.run(fail)
        raise KeyError("the body's")


def test_ahead_keeps_the_order_and_takes_no_more_than_it_may():
    taken = []

    def items():
        for i in range(10):
            taken.append(i)
            yield i

    results = ahead(lambda i: i * i, items(), 3)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert list(results) == [i * i for i in range(1, 10)]


def test_ahead_raises_in_its_place():
    results = ahead(lambda i: 6 // i, [3, 2, 0, 1], 2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
