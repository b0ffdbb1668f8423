"""Recipes: those that ship, and what is refused of others."""

import json

import pytest

from anyprec.options import CODEBOOKS
from anyprec.recipes import Descent, RecipeError, load_recipe, recipe_names

BEST = {
    "name": "mine",
    "refit": True,
    "descent": {"taus": {"2": 1, "4": 0.5}, "rounds": 2, "child_sweeps": 1},
    "distillation": {"steps": {"2": 300, "3": 200}, "learning_rates": {"2": 0.01, "3": 0.003}},
}


def changed(path: str, value) -> dict:
    recipe = json.loads(json.dumps(BEST))
    *parents, last = path.split("/")
    inner = recipe
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return recipe


@pytest.fixture
def written(tmp_path):
    def write(recipe):
        path = tmp_path / "mine.json"
        path.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
        return path

    return write


def test_three_recipes_ship_each_doing_more_than_the_one_before():
    assert recipe_names() == ["balanced", "best", "fast"]
    fast, balanced, best = (load_recipe(name) for name in ("fast", "balanced", "best"))
    assert (fast.refit, fast.descent, fast.distillation) == (False, None, None)
    assert balanced.refit and balanced.descent and balanced.distillation is None
    assert best.refit and best.descent and best.distillation
    for recipe in (fast, balanced, best):
        assert recipe.description
        for codebook in CODEBOOKS:
            recipe.check(range(2, 9), codebook)


def test_a_file_is_a_recipe_too(written):
    recipe = load_recipe(written(BEST))
    assert recipe.descent.weights((2, 3, 4, 5)) == [1.0, 0.0, 0.5, 0.0]
    assert recipe.distilled((3, 4, 5)) == [3]
    assert recipe.distillation.steps == {2: 300, 3: 200}
    assert load_recipe(recipe) is recipe
    without_rates = load_recipe(written(changed("distillation/learning_rates", None)))
    assert without_rates.distillation.learning_rates is None


def test_the_record_is_json_and_has_all_but_the_description(written):
    recipe = load_recipe(written({**BEST, "description": "so so"}))
    record = recipe.record()
    assert json.loads(json.dumps(record)) == record
    assert record == load_recipe(written({**BEST, "description": "otherwise"})).record()
    longer = load_recipe(written(changed("distillation/steps", {"2": 7, "3": 7})))
    assert record != longer.record()
    assert recipe.fit_record() == longer.fit_record()
    assert recipe.fit_record() != load_recipe(written(changed("descent/rounds", 7))).fit_record()


def test_a_plainer_metric_needs_no_hessians_but_a_refit(written):
    assert load_recipe(written(BEST)).hessians and not load_recipe("fast").hessians
    plain = load_recipe(written({**BEST, "metric": "plain"}))
    assert not plain.hessians
    assert plain.fit_record() != load_recipe(written(BEST)).fit_record()
    with pytest.raises(RecipeError, match="metric: found 'plain' where refit is false"):
        load_recipe(written({"name": "mine", "refit": False, "metric": "plain"}))


def test_the_record_has_no_folder_of_a_text(written):
    recipe = load_recipe(written(changed("distillation/dataset", "/home/me/text.txt")))
    assert recipe.distillation.dataset == "/home/me/text.txt"
    assert recipe.record()["distillation"]["dataset"] == "text.txt"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", "red", r"colour: unknown, wanted one of .*descent, .*refit"),
        ("descent/sweeps", 1, r"descent\.sweeps: unknown"),
        ("distillation/epochs", 1, r"distillation\.epochs: unknown"),
        ("name", None, "name: missing"),
        ("name", "", "name: found ''"),
        ("refit", None, "refit: missing"),
        ("refit", 1, "refit: found 1, wanted true or false"),
        ("refit", False, "descent: wanted null where refit is false"),
        ("metric", "loss", "metric: found 'loss', wanted one of guided, fisher, plain"),
        (
            "binary",
            {"start": "random"},
            r"binary\.start: found 'random', wanted one of range, greedy",
        ),
        ("binary", {"end": "range"}, r"binary\.end: unknown, wanted one of descent, start"),
        ("binary", {"descent": {"taus": {"2": 1}}}, r"binary\.descent\.child_sweeps: missing"),
        ("binary", ["range"], r"binary: found \['range'\], wanted an object"),
        ("descent", [], r"descent: found \[\], wanted an object"),
        ("descent/rounds", None, r"descent\.rounds: missing"),
        ("descent/rounds", 0, r"descent\.rounds: found 0, wanted an integer of at least 1"),
        ("descent/child_sweeps", 1.5, r"descent\.child_sweeps: found 1.5"),
        ("labels", "mine", "labels: found 'mine', wanted one of text, model"),
        ("passes", 0, "passes: found 0, wanted an integer of at least 1"),
        ("passes", 2, "passes: found 2 over labels of the text, which are the same in each"),
        ("descent/seeds", 4, r"descent\.seeds: found 4, wanted a list of precisions"),
        ("descent/seeds", [9], r"descent\.seeds: found \[9\], wanted precisions of 2 to 8"),
        ("descent/taus", {}, r"descent\.taus: empty"),
        ("descent/taus", {"9": 1}, r"descent\.taus: found precision 9, wanted 2 to 8"),
        ("descent/taus", {"two": 1}, r"descent\.taus: found .*wanted a number for each precision"),
        ("descent/taus", {"2": -1}, r"descent\.taus\.2: found -1, wanted a positive number"),
        ("distillation/steps", {}, r"distillation\.steps: empty"),
        ("distillation/steps", {"9": 1}, r"distillation\.steps: found precision 9, wanted 2 to 8"),
        ("distillation/steps", {"2": 5}, r"rates: found \[2, 3\], wanted the \[2\] of .*steps"),
        ("distillation/steps", {"2": 1.5, "3": 1}, r"distillation\.steps\.2: found 1.5, wanted an"),
        ("distillation/steps", 300, r"distillation\.steps: found 300, wanted a number for each"),
        ("distillation/learning_rates", {"2": 1}, r"rates: found \[2\], wanted the \[2, 3\]"),
        ("distillation/dataset", 3, r"distillation\.dataset: found 3"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(written, path, value, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(written(changed(path, value)))
    assert "mine.json: " in str(error.value)


def test_a_file_that_is_no_json_is_named(written):
    with pytest.raises(RecipeError, match=r"mine\.json: Expecting"):
        load_recipe(written("{"))


def test_what_calibration_sums_is_recorded_with_what_is_made_of_it(written):
    plain = load_recipe(written(BEST))
    drawn = load_recipe(written({**BEST, "labels": "model", "passes": 3}))
    assert plain.sums_record() == {"labels": "text", "passes": 1}
    assert drawn.sums_record() == {"labels": "model", "passes": 3}
    assert drawn.record() == {**plain.record(), **drawn.sums_record()}


def test_binary_coding_may_have_a_descent_of_its_own(written):
    recipe = load_recipe(written(BEST))
    own = {"taus": {"3": 1}, "rounds": 1, "child_sweeps": 0, "seeds": [2]}
    other = load_recipe(written({**BEST, "binary": {"descent": own}}))
    assert recipe.descent_of("bcq") == recipe.descent_of("lut") == other.descent_of("hybrid")
    assert other.descent_of("bcq") == Descent({3: 1}, 1, 0, [2])
    assert recipe.binary.start == other.binary.start == "range"
    assert recipe.fit_record() != other.fit_record()
    with pytest.raises(RecipeError, match=r"binary\.descent: wanted null where refit is false"):
        load_recipe(written({"name": "mine", "refit": False, "binary": {"descent": own}}))


def test_a_recipe_that_is_not_there_names_those_that_are():
    with pytest.raises(RecipeError, match="'better': neither one of balanced, best, fast nor a"):
        load_recipe("better")


def test_a_step_without_any_precision_to_work_on_is_an_error(written):
    recipe = load_recipe(written(BEST))
    with pytest.raises(RecipeError, match=r"recipe mine: its descent is for none .* 7, 8"):
        recipe.check((7, 8), "lut")
    with pytest.raises(RecipeError, match=r"its distillation is for none of .* 4, 5"):
        recipe.check((4, 5), "lut")
