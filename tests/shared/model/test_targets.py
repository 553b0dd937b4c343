"""Which layers of a base are adapted."""

import pytest

from shared.errors import ConfigError
from shared.model.base import load_model
from shared.model.targets import find_targets


def test_siglip_keeps_its_pooling_head_frozen(siglip_folder) -> None:
    model, _ = load_model(siglip_folder)
    targets = find_targets(model, ["attention", "mlp", "projection"], "all")
    assert len(targets) == 2 * (2 * 6)
    assert not any("head" in target for target in targets)


def test_targets_by_name_and_the_top_layers(clip_folder) -> None:
    model, _ = load_model(clip_folder)
    targets = find_targets(model, ["q_proj", "text_projection"], "top:1")
    assert targets == [
        "vision_model.encoder.layers.1.self_attn.q_proj",
        "text_model.encoder.layers.1.self_attn.q_proj",
        "text_projection",
    ]


@pytest.mark.parametrize(
    ("targets", "layers", "message"),
    [
        (["q_porj"], "all", r"'q_porj' is not a linear layer.*did you mean 'q_proj'"),
        (["atention"], "all", r"did you mean 'attention'"),
        (["attention"], "last:2", r"expected 'all', 'top:N'"),
    ],
)
def test_names_the_target_that_is_wrong(clip_folder, targets, layers, message) -> None:
    model, _ = load_model(clip_folder)
    with pytest.raises(ConfigError, match=message):
        find_targets(model, targets, layers)


def test_a_share_of_the_layers_counts_in_each_tower(clip_folder) -> None:
    model, _ = load_model(clip_folder)  # two layers in each tower
    one = find_targets(model, ["q_proj"], "top:1")
    assert find_targets(model, ["q_proj"], "top:1/2") == one
    assert find_targets(model, ["q_proj"], "top:1/3") == one  # never none
    assert find_targets(model, ["q_proj"], "top:2/2") == find_targets(model, ["q_proj"], "all")
    with pytest.raises(ConfigError, match="share of each tower"):
        find_targets(model, ["q_proj"], "top:3/2")
