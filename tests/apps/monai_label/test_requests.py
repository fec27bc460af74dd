import pytest

from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.monai_label.requests import OPTIONS, register, register_arguments, series_of
from groupmorph_monai.errors import InputError


def test_options_of_a_request_reach_the_command():
    request = {"reference": 2, "effort": "best", "initial": "rigid", "spacing_mm": 1.5, "overlay": ["data/lung_ct"]}
    asked = register_arguments({**request, "model": "groupmorph", "image": "x", "client_id": None})
    args = make_parser().parse_args(["register", *asked, "--", "x"])
    assert {name: getattr(args, name) for name in request} == {**request, "reference": args.reference}
    assert int(args.reference) == 2 and args.files == ["x"]


DEFAULTS = {name: value[0] if isinstance(value, list) and value else value for name, value in OPTIONS.items()}


@pytest.mark.parametrize("request_", [{}, DEFAULTS])
def test_a_request_of_defaults_is_the_commands_default(request_):
    asked, default = (
        vars(make_parser().parse_args(["register", *words, "x"])) for words in (register_arguments(request_), [])
    )
    assert {**asked, "effort": None} == {**default, "initial": asked["initial"]}
    assert asked["initial"] in (None, "affine")


@pytest.mark.parametrize(
    "name, value", [("overlay", "/etc/own.yaml"), ("overlay", ["own"]), ("output", "/"), ("set", "")]
)
def test_a_request_names_no_file_of_the_server(name, value):
    with pytest.raises(InputError, match=name):
        register_arguments({name: value})


def test_a_value_is_never_an_option():
    assert "--initial=none --output=/" in register_arguments({"initial": "none --output=/"})


def test_a_series_is_an_image_or_the_images_that_are_named():
    store = {"a": "/data/a.nii.gz", "b": "/data/b.nii.gz"}
    files = series_of({"image": "a", "images": ["b", "a"]}, lambda name: store.get(name, ""))
    assert files == ["/data/b.nii.gz", "/data/a.nii.gz"]
    assert series_of({"image": "a", "images": []}, store.get) == ["a"]
    with pytest.raises(InputError, match="'c'"):
        series_of({"image": "a", "images": ["a", "c"]}, lambda name: store.get(name, ""))


@pytest.mark.parametrize("value", [5, True, {"a": 1}, [["a"]]])
def test_names_that_are_not_texts_are_the_clients_mistake(value):
    with pytest.raises(InputError, match="images: expected a list of names"):
        series_of({"image": "a", "images": value}, str)
    with pytest.raises(InputError, match="overlay: expected one of"):
        register_arguments({"overlay": value})


@pytest.mark.parametrize("series, arguments", [(["a\0b"], []), (["a"], ["--spacing-mm=\0"])])
def test_a_null_character_is_the_clients_mistake(series, arguments, tmp_path):
    with pytest.raises(InputError, match="params: expected text, got .* with a null character; remove it"):
        register(series, arguments, tmp_path / "out")


def test_the_commands_line_is_the_requests(tmp_path):
    with pytest.raises(InputError, match="none.nii.gz"):
        register([str(tmp_path / "none.nii.gz")], [], tmp_path / "out")


@pytest.mark.parametrize("name", ["image", "mask"])
@pytest.mark.parametrize("value", [5, True, ["final"], {"a": 1}])
def test_a_name_that_is_not_text_is_the_clients_mistake(name, value):
    with pytest.raises(InputError, match=f"{name}: expected a name, got"):
        register_arguments({name: value})


@pytest.mark.parametrize("request_", [{}, {"image": None, "mask": "final"}, {"images": []}])
def test_a_request_without_image_is_the_clients_mistake(request_):
    with pytest.raises(InputError, match="image: expected the name of an image, got none"):
        series_of(request_, str)
