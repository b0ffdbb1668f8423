"""Requests for precisions: resolution, scopes, threads."""

import asyncio
import contextvars
import copy
import pickle
import threading

import pytest

from anyprec import PrecisionError
from anyprec.precision import PrecisionController

NAMES = ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]


@pytest.fixture
def controller() -> PrecisionController:
    return PrecisionController(NAMES, [8, 3, 4])


def test_default_is_the_highest_loaded_precision(controller):
    assert controller.request == 8
    assert [controller.precision_of(i) for i in range(4)] == [8, 8, 8, 8]


def test_int_applies_to_every_linear(controller):
    assert controller.resolve(3) == (3, 3, 3, 3)


def test_first_matching_pattern_decides(controller):
    assert controller.resolve({"layers.0.*": 8, "*.up": 3, "*": 4}) == (8, 8, 3, 4)


def test_names_of_linears_and_patterns_may_be_mixed(controller):
    assert controller.resolve({"layers.1.up": 3, "layers.*": 4}) == (4, 4, 3, 4)
    assert controller.resolve({"layers.*": 4, "layers.1.up": 3}) == (4, 4, 4, 4)


def test_precision_that_is_not_loaded_names_those_that_are(controller):
    with pytest.raises(PrecisionError, match="precision 5 is not loaded; loaded: 3, 4, 8"):
        controller.resolve(5)
    with pytest.raises(PrecisionError, match=r"precision 2 for pattern '\*' is not loaded"):
        controller.resolve({"*": 2})


def test_linear_without_pattern_is_an_error_that_names_it(controller):
    with pytest.raises(PrecisionError, match=r"no precision pattern matches 'layers\.1\.up'"):
        controller.resolve({"layers.0.*": 8})


def test_pattern_without_linear_is_an_error_that_names_it(controller):
    with pytest.raises(PrecisionError, match=r"'layers\.7\.\*' matches none"):
        controller.resolve({"layers.7.*": 8, "*": 4})


@pytest.mark.parametrize("request_", ["4", 4.0, True, None, [4], {"*": "4"}, {"*": True}])
def test_what_is_not_an_int_is_a_type_error_even_where_it_equals_a_cached_one(controller, request_):
    controller.resolve(4)
    controller.resolve({"*": 4})
    with pytest.raises(TypeError, match="is wanted"):
        controller.resolve(request_)


def test_blocks_nest_and_are_left_on_exceptions(controller):
    with controller.using(4):
        with pytest.raises(KeyError), controller.using({"*": 3}):
            assert controller.request == {"*": 3}
            raise KeyError
        assert controller.request == 4
    assert controller.request == 8


def test_block_with_a_wrong_precision_changes_nothing(controller):
    with pytest.raises(PrecisionError), controller.using(5):
        pass
    assert controller.request == 8
    with pytest.raises(PrecisionError):
        controller.default = 5
    assert controller.default == 8


def test_later_changes_of_the_callers_mapping_do_not_arrive(controller):
    request = {"*": 3}
    controller.default = request
    request["*"] = 8
    assert controller.precision_of(0) == 3


def test_default_reaches_other_threads_and_blocks_do_not(controller):
    seen = []
    controller.default = 4
    with controller.using(3):
        thread = threading.Thread(target=lambda: seen.append(controller.precision_of(0)))
        thread.start()
        thread.join()
    assert seen == [4]


def test_blocks_in_interleaved_asyncio_tasks_are_apart(controller):
    async def task(precision: int) -> list[int]:
        seen = []
        with controller.using(precision):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(controller.precision_of(0))
        return seen

    async def both():
        return await asyncio.gather(task(3), task(4))

    assert asyncio.run(both()) == [[3, 3, 3], [4, 4, 4]]


def test_copied_context_takes_the_block_along(controller):
    with controller.using(3):
        context = contextvars.copy_context()
    assert context.run(controller.precision_of, 0) == 3
    assert controller.precision_of(0) == 8


def test_forward_pass_keeps_the_assignment_it_began_with(controller):
    outer = controller.begin_forward(3)
    controller.default = 4
    assert controller.precision_of(0) == 3
    inner = controller.begin_forward(8)
    assert controller.precision_of(0) == 8
    controller.end_forward(inner)
    assert controller.precision_of(0) == 3
    assert controller.request == 3
    controller.end_forward(outer)
    assert controller.precision_of(0) == 4


def test_forward_pass_that_cannot_begin_changes_nothing(controller):
    with pytest.raises(PrecisionError):
        controller.begin_forward(5)
    assert controller.request == 8
    assert controller.precision_of(0) == 8


def test_two_controllers_are_apart(controller):
    other = PrecisionController(NAMES, [3, 4, 8])
    with controller.using(3), other.using(4):
        assert controller.precision_of(0) == 3
        assert other.precision_of(0) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_keep_the_default_and_are_apart(controller, duplicate):
    controller.default = {"*.up": 3, "*": 4}
    twin = duplicate(controller)
    assert twin.resolve(twin.request) == (3, 4, 3, 4)
    twin.default = 8
    assert controller.default == {"*.up": 3, "*": 4}
