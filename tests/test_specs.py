"""Specs refuse what does not fit, in a sentence that names the field."""

import pytest

from shared.errors import Invalid
from shared.specs import ARCHITECTURES, parse, parse_model_ref, rename_lines

FOLDER = {"kind": "folder", "path": "/photos"}


def refused(kind, match, **data):
    with pytest.raises(Invalid, match=match) as error:
        parse(kind, data)
    return error.value


def test_a_training_has_the_courses_defaults():
    spec = parse("train", {"dataset": "wonders"})
    assert (spec.arch, spec.image_size, spec.min_scale, spec.epochs, spec.frozen_epochs) == ("resnet18", 224, 0.5, 4, 1)
    assert (spec.valid_pct, spec.seed, spec.base_lr, spec.start, spec.augment) == (0.2, 42, 2e-3, "imagenet", "course")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", 'a"b', "<b>", "UPPER", ".hidden", "-x", "a" * 64, "naïve", "a\n", "a\0"])
def test_a_name_that_could_be_a_path_or_markup_is_refused(name):
    assert refused("train", "a name is lower-case letters", dataset=name).field == "dataset"


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "\u202egnp.exe", "x" * 101])
def test_a_class_name_with_control_characters_is_refused(name):
    refused("scrape", "class name", dataset="w", classes=[{"name": name}, {"name": "b"}])


def test_a_class_name_may_be_any_other_text():
    spec = parse("scrape", {"dataset": "w", "classes": [{"name": "<img src=x>"}, {"name": "Cafe\u0301 / 咖啡 'n'"}]})
    assert [c.name for c in spec.classes] == ["<img src=x>", "Café / 咖啡 'n'"]


def test_classes_that_differ_by_case_alone_are_refused():
    refused("scrape", "named twice", dataset="w", classes=[{"name": "Petra"}, {"name": "petra"}])


def test_one_class_is_not_enough():
    refused("scrape", "at least 2", dataset="w", classes=[{"name": "Petra"}])


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", -1), ("epochs", 0), ("epochs", "many"), ("batch_size", 1), ("valid_pct", 1.5), ("image_size", 8)]
)
def test_a_number_out_of_bounds_names_its_field(field, value):
    assert refused("train", field, dataset="x", **{field: value}).field == field


def test_an_unknown_architecture_is_told_the_known_ones():
    assert all(arch in str(refused("train", "unknown architecture", dataset="x", arch="nonsense")) for arch in ARCHITECTURES)


def test_an_unknown_field_is_refused():
    refused("train", "epochz", dataset="x", epochz=3)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "javascript:alert(1)", "http://", "just text"])
def test_only_http_addresses_are_items(url):
    refused("classify", "http", model="m", source={"kind": "urls", "urls": [url]})


@pytest.mark.parametrize("ref", ["", "a/b/c", "a/v", "../x", "a/v0000000001", "A"])
def test_a_model_reference_is_a_name_and_perhaps_a_version(ref):
    refused("classify", "name/v3", model=ref, source=FOLDER)


def test_model_references_are_parsed():
    assert parse_model_ref("clothing") == ("clothing", None)
    assert parse_model_ref("clothing/v3") == parse_model_ref("clothing/3") == ("clothing", 3)


def test_lines_say_which_class_becomes_which():
    assert rename_lines(["kitty = cat", "", "junk =", "a=b = c", "x=y"]) == {"kitty": "cat", "junk": None, "a=b": "c", "x": "y"}
    for wrong in (["cat"], ["= cat"], ["a = b", "a = c"]):
        with pytest.raises(ValueError, match=r"does not say which|renamed twice"):
            rename_lines(wrong)


def test_renames_are_class_names_and_none_for_what_is_left_out():
    spec = parse("import", {"dataset": "d", "source": FOLDER, "classes": {" cafe\u0301 ": "Café", "junk": "", "old": None}})
    assert spec.classes == {"café": "Café", "junk": None, "old": None}
    refused("import", "upper and lower case", dataset="d", source=FOLDER, classes={"a": "X", "b": "x"})
    refused("import", "control, bidirectional", dataset="d", source=FOLDER, classes={"a": "b\u202e"})
    refused("import", "at most 10,000 classes", dataset="d", source=FOLDER, classes={str(n): "x" for n in range(10_001)})
    refused("import", "500 characters", dataset="d", source=FOLDER, note="x" * 501)


def test_an_export_has_one_of_five_formats():
    refused("pack", "format", dataset="d", format="pickle")
    refused("pack", "a name is lower-case", dataset="../d")
