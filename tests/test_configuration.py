import json
import re

import pytest
from transformers import AutoConfig, BertConfig

from configuration_sarcse import OF_ENCODER, SarcseConfig, __version__

from .conftest import PROJECT


def test_every_field_survives_saving_and_loading(tmp_path):
    """No field collides with a name that transformers treats specially (generation names vanish on load)."""
    fields = {
        "pooler": "words",
        "kernel_sizes": [2, 5],
        "channels": 7,
        "integration_kernel_size": 4,
        "activation": "relu",
        "decoder_length": 11,
        "special_token_ids": [9, 3],
    }
    SarcseConfig(encoder_config=BertConfig(hidden_size=48), **fields).save_pretrained(tmp_path)
    loaded = SarcseConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == {**fields, "special_token_ids": [3, 9]}
    assert isinstance(loaded.encoder_config, BertConfig)
    assert loaded.hidden_size == 48


@pytest.mark.parametrize(("hidden_size", "channels"), [(768, 96), (384, 48), (128, 16), (24, 8)])
def test_default_channels_follow_the_encoder(hidden_size, channels, tmp_path):
    """An eighth of d, rounded up to a multiple of 8; a saved value stays."""
    encoder_config = BertConfig(hidden_size=hidden_size)
    assert SarcseConfig(encoder_config=encoder_config).channels == channels
    SarcseConfig(encoder_config=encoder_config, channels=512).save_pretrained(tmp_path)
    assert SarcseConfig.from_pretrained(tmp_path).channels == 512


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_sizes", []),
        ("kernel_sizes", 3),
        ("kernel_sizes", [3, 0]),
        ("kernel_sizes", [3, "4"]),
        ("channels", 0),
        ("channels", -2),
        ("channels", 1.5),
        ("channels", True),
        ("integration_kernel_size", 0),
        ("activation", "gelo"),
        ("decoder_length", 0),
        ("special_token_ids", [-1]),
        ("encoder_config", "roberta"),
        ("encoder_config", {"hidden_size": 8}),
        *((name, 64) for name in OF_ENCODER),  # it would be RoBERTa-base's all the same
    ],
)
def test_impossible_value_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        SarcseConfig(**{field: value})


@pytest.mark.parametrize("model_type, own", [("bert", "hidden_size"), ("distilbert", "dim"), ("t5", "d_model")])
def test_the_encoders_sizes_have_the_usual_names_whatever_the_encoder_calls_them(model_type, own):
    config = SarcseConfig(encoder_config={"model_type": model_type, own: 96})
    assert config.to_dict()["hidden_size"] == config.hidden_size == 96
    assert config.num_hidden_layers == config.to_dict()["num_hidden_layers"] > 1
    assert SarcseConfig(**config.to_dict()).to_dict() == config.to_dict(), "what it wrote is no contradiction"
    with pytest.raises(
        ValueError, match=f"`hidden_size` is the encoder's: set it in `encoder_config`, as '{own}': 64"
    ):
        SarcseConfig(encoder_config={"model_type": model_type, own: 96}, hidden_size=64)


def test_default_encoder_is_roberta_base_in_shape():
    """`SarcseConfig()` must exist without arguments: transformers compares with it when saving."""
    assert SarcseConfig().encoder_config.to_dict() == AutoConfig.for_model("roberta").to_dict()


def test_the_version_stands_once_and_travels_with_what_is_saved(tmp_path):
    """An earlier configuration has no version, or that of the code that saved it. Saving updates it to this code's."""
    SarcseConfig(sarcse_version="0.0.1").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["sarcse_version"] == SarcseConfig().sarcse_version == __version__
    citation = (PROJECT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == __version__
    assert re.search(r"^date-released: \d{4}-\d\d-\d\d$", citation, re.MULTILINE)
    assert f"## {__version__}" in (PROJECT / "CHANGELOG.md").read_text()


def test_the_extras_of_the_package_have_the_ranges_of_the_requirements():
    lines = (PROJECT / "requirements-dev.txt").read_text().splitlines()
    wanted = {line for line in lines if line[:1].isalpha()}
    extras = (PROJECT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n\n")[0]
    given = {name for name in re.findall(r'"([^"]+)"', extras) if not name.startswith("sarcse[")}
    assert given == wanted
