import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from client.gallery import choose, gallery
from shared.model.view import AdapterView

_spec = importlib.util.spec_from_file_location(
    "stub_encoder", Path(__file__).with_name("stub_encoder.py")
)
stub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stub)

VIEWS = {
    "base": stub.noisy_view(1, 1.0),
    "shared": stub.noisy_view(2, 0.3),
    "personal": AdapterView(),
}


def distinct_site(**options):
    """Twenty-four different texts, so that ranks differ."""
    test = stub.make_split(3, 24, spread=40)
    texts = [
        " ".join(f"{value:.3f}" for value in np.random.default_rng(n).normal(size=6) + vector)
        for n, vector in enumerate(test.pixels.reshape(24, 6).astype(float) / 20 - 5)
    ]
    return stub.make_site(dataclasses.replace(test, texts=tuple(texts)), **options)


def show(data, queries=4, seed=1, views=VIEWS):
    return gallery(stub.StubEncoder(), data, views, queries, seed)


def test_one_query_per_quarter_and_five_pictures_for_two_models():
    data = distinct_site()
    queries, pictures = show(data)
    assert [query.quarter for query in queries] == [1, 2, 3, 4]
    ranks = [query.first_match["personal"] for query in queries]
    assert ranks == sorted(ranks)
    for query in queries:
        assert query.site == "st-anna"
        assert query.text in data.splits["test"].texts
        assert list(query.found) == list(query.first_match) == ["base", "personal"]
        assert all(len(found) == 5 for found in query.found.values())
        for model, found in query.found.items():
            first = next((n + 1 for n, picture in enumerate(found) if picture.match), None)
            rank = query.first_match[model]
            assert first == (rank if rank <= 5 else None)
    shown = {p.image for q in queries for found in q.found.values() for p in found}
    assert shown == set(pictures)
    assert all(image.shape == (1, 6, 1) and image.dtype == np.uint8 for image in pictures.values())


def test_the_worst_quarter_is_always_there():
    assert [query.quarter for query in show(distinct_site(), queries=1)[0]] == [4]
    assert [query.quarter for query in show(distinct_site(), queries=2)[0]] == [1, 4]
    assert [quarter for _, quarter in choose(np.array([3]), 4, seed=0)] == [4]
    assert [quarter for _, quarter in choose(np.array([3, 1]), 4, seed=0)] == [2, 4]


def test_the_worst_query_is_in_the_worst_quarter():
    ranks = np.arange(1, 41)
    for seed in range(5):
        chosen = {quarter: ranks[place] for place, quarter in choose(ranks, 4, seed)}
        assert 31 <= chosen[4] <= 40
        assert 1 <= chosen[1] <= 10


def test_more_queries_than_texts_shows_every_text_once():
    chosen = choose(np.array([1, 2, 5]), 12, seed=0)
    assert sorted(place for place, _ in chosen) == [0, 1, 2]


def test_the_job_seed_chooses():
    one, again, other = (show(distinct_site(), seed=seed)[0] for seed in (1, 1, 2))
    assert one == again
    assert [q.text for q in one] != [q.text for q in other]


def test_an_identical_text_of_another_record_is_a_match():
    queries, _ = show(stub.make_site(), queries=1)
    (query,) = queries
    data = stub.make_site().splits["test"]
    matching = sum(text == query.text for text in data.texts)
    assert matching == 10
    assert sum(picture.match for picture in query.found["personal"]) >= 1


@pytest.mark.parametrize(
    ("origin", "licence", "shown"),
    [
        ("phantom", "", True),
        ("public", "CC BY 4.0", True),
        ("public", "", False),
        ("private", "x", False),
    ],
)
def test_pictures_need_a_phantom_or_a_licence(origin, licence, shown):
    queries, pictures = show(distinct_site(origin=origin, licence=licence))
    assert bool(queries) == bool(pictures) == shown


def test_keys_say_nothing_of_the_record():
    _, pictures = show(distinct_site())
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in pictures)


def test_nothing_to_retrieve_gives_nothing():
    test = stub.make_split(3, 12)
    blind = dataclasses.replace(test, has_image=np.zeros(12, bool))
    assert show(stub.make_site(blind)) == ([], {})
    assert show(distinct_site(), queries=0) == ([], {})
    assert show(distinct_site(), views={"oracle": AdapterView()}) == ([], {})


def test_without_a_personal_model_the_shared_one_is_shown():
    views = {"base": VIEWS["base"], "shared": VIEWS["shared"]}
    queries, _ = show(distinct_site(), views=views)
    assert list(queries[0].found) == ["base", "shared"]
