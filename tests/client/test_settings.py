"""A site's own file: paths start at its folder, mistakes are named in one line."""

import pytest

from client.settings import load_agent
from shared.errors import ConfigError

GOOD = """
name = "north"
state = "state"

[data]
table = "data/metadata.csv"
columns = { text = "report" }
modality = "image"

[references]
local = "local.safetensors"
"""


def test_a_site_file_is_read(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(GOOD)
    site = load_agent(path).site
    assert site.name == site.source.name == "north"
    assert site.state == tmp_path / "state"
    assert site.source.table == tmp_path / "data" / "metadata.csv"
    assert site.source.root == tmp_path / "data"
    assert site.source.columns == {"text": "report"}
    assert site.source.modality == "image"
    assert site.references == {"local": tmp_path / "local.safetensors"}
    assert site.device == "auto"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('name = "north"', 'name = "../north"', "name"),
        ('name = "north"', 'nane = "north"', "name"),
        ('state = "state"', "state = 3", "state"),
        ('modality = "image"', 'modality = "sound"', "data.modality"),
        ("[references]", "[reference]", "reference"),
        ("[data]", "[data", "TOML"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path, old, new, key):
    path = tmp_path / "site.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=key) as caught:
        load_agent(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such site file"):
        load_agent(tmp_path / "site.toml")
