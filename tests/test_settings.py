"""Laws of what a user writes as YAML: text stays text, numbers are numbers."""

import pytest
import yaml

from ntkprobe.settings import parse_yaml

READ = {
    "10:30": "10:30",
    "no": "no",
    "on": "on",
    "true": True,
    "1e-4": 1e-4,
    "1.5e3": 1500.0,
    "-.5": -0.5,
    ".inf": float("inf"),
    "16": 16,
    "010": 10,
    "1_000": "1_000",
    "2026-11-29": "2026-11-29",
    "~": None,
    "": None,
    "'16'": "16",
    "[1, 1e-3, no]": [1, 1e-3, "no"],
}


@pytest.mark.parametrize("text", READ)
def test_values_are_read_by_the_core_schema_of_yaml_1_2(text):
    found = parse_yaml(text)
    assert (type(found), found) == (type(READ[text]), READ[text])


def test_what_the_older_schema_reads_otherwise_is_what_the_tests_are_about():
    assert yaml.safe_load("10:30") == 630
    assert yaml.safe_load("1e-4") == "1e-4"
    assert yaml.safe_load("no") is False


def test_keys_may_be_merged():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "a: [1"])
def test_what_is_no_plain_yaml_is_an_error(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
