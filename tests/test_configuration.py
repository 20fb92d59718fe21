import pytest
from transformers import AutoConfig, BertConfig

from configuration_sarcse import SarcseConfig


def test_every_field_survives_saving_and_loading(tmp_path):
    """No field collides with a name that transformers treats specially (generation names vanish on load)."""
    fields = {
        "pooler": "autoencoder",
        "kernel_sizes": [2, 5],
        "channels": 7,
        "integration_kernel_size": 4,
        "activation": "relu",
        "pooling": "max",
        "decoder_length": 11,
        "decoder_initialization": "random",
        "special_token_ids": [9, 3],
    }
    SarcseConfig(encoder_config=BertConfig(hidden_size=48), **fields).save_pretrained(tmp_path)
    loaded = SarcseConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == {**fields, "special_token_ids": [3, 9]}
    assert isinstance(loaded.encoder_config, BertConfig)
    assert loaded.hidden_size == 48


@pytest.mark.parametrize(("hidden_size", "channels"), [(768, 512), (256, 176), (128, 88), (24, 16)])
def test_default_channels_follow_the_encoder(hidden_size, channels, tmp_path):
    """Three kernel sizes times `channels` is the first multiple of 24 from 2 d on; what is saved does not follow."""
    encoder_config = BertConfig(hidden_size=hidden_size)
    assert SarcseConfig(encoder_config=encoder_config).channels == channels
    SarcseConfig(encoder_config=encoder_config, channels=512).save_pretrained(tmp_path)
    assert SarcseConfig.from_pretrained(tmp_path).channels == 512


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooler", "first"),
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
        ("pooling", "median"),
        ("decoder_length", 0),
        ("decoder_initialization", "zero"),
        ("special_token_ids", [-1]),
        ("encoder_config", "roberta"),
        ("encoder_config", {"hidden_size": 8}),
    ],
)
def test_impossible_value_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        SarcseConfig(**{field: value})


def test_default_encoder_is_roberta_base_in_shape():
    """`SarcseConfig()` must exist without arguments: transformers compares with it when saving."""
    assert SarcseConfig().encoder_config.to_dict() == AutoConfig.for_model("roberta").to_dict()
