"""What the page of findings calls an effect."""

import pytest

from experiments.ablations.findings import effect, spread, table
from experiments.ablations.studies import STUDIES
from rdcd_jax.augment.policies import find_policy
from rdcd_jax.training.schema import defaults


def runs(*values):
    return [{"dims": {"64": {"µAP": value}}} for value in values]


def test_only_what_is_beyond_the_seeds_is_an_effect():
    assert effect([3.0, 4.0], [1.0, 2.0]) == "+2.0"
    assert effect([1.0, 2.0], [3.0, 4.0]) == "-2.0"
    assert effect([1.0, 3.0], [2.0, 4.0]) == "*same*"
    assert effect([2.0], [2.0]) == "*same*"
    assert spread([1.0, 3.0]) == "2.0 ± 1.4" and spread([1.0]) == "1.0"
    assert table({"as it is": runs(1.0, 2.0), "other": runs(3.0, None)}, "µAP").splitlines() == [
        "| µAP | 64-d |",
        "|---|---|",
        "| as it is | 1.5 ± 0.7 |",
        "| other | 1.5 ± 2.1, *same* |",
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_settings_are_fields_of_a_config(name):
    for fields in STUDIES[name].settings.values():
        assert fields.keys() <= defaults().keys()
        if "data.policy" in fields:
            assert "frame" in {step.operation for step in find_policy(fields["data.policy"])}


@pytest.mark.parametrize("name", STUDIES)
def test_what_starts_from_another_names_a_setting_before_it(name):
    names = list(STUDIES[name].settings)
    for setting, first in STUDIES[name].after.items():
        assert names.index(first) < names.index(setting)
