"""The sample that a tokenizer is learnt from: shares by language, and the same in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.documents import Document, Documents, documents_writer
from stages.data.tokenizers.tokenizer_sampling import (
    MAX_REPEATS,
    language_rates,
    language_sizes,
    sample_lines,
)

sizes_by_language = st.dictionaries(
    st.sampled_from(["en", "zh", "de", "ja", "xx"]), st.integers(0, 10**9), min_size=1
)


@given(sizes_by_language, st.integers(1, 10**9), st.floats(0.05, 1))
def test_rates_follow_alpha_up_to_the_maximum_repetition(sizes, characters, alpha):
    rates = language_rates(sizes, characters, alpha)
    assert set(rates) == set(sizes)
    assert all(0 <= rate <= MAX_REPEATS for rate in rates.values())
    drawn = {name: rates[name] * size for name, size in sizes.items() if size}
    budget = min(characters, sum(sizes.values()))
    free = [name for name in drawn if rates[name] < MAX_REPEATS]
    if free:
        assert sum(drawn.values()) == pytest.approx(budget)
        scale = {name: drawn[name] / sizes[name] ** alpha for name in free}
        assert max(scale.values()) == pytest.approx(min(scale.values()))
    else:
        assert sum(drawn.values()) <= budget * (1 + 1e-9)


def test_alpha_of_one_samples_proportionally():
    rates = language_rates({"en": 900, "zh": 100}, 500, 1.0)
    assert rates == pytest.approx({"en": 0.5, "zh": 0.5})


def test_a_small_language_is_sampled_more():
    sizes = {"en": 98_000_000, "zh": 2_000_000}
    rates = language_rates(sizes, 10_000_000, 0.3)
    share = rates["zh"] * sizes["zh"] / 10_000_000
    assert 0.2 < share < 0.3 and rates["zh"] < MAX_REPEATS


def test_the_sample_of_documents_follows_the_rates(tmp_path):
    with documents_writer(tmp_path) as writer:
        for k in range(400):
            lang = "zh" if k % 40 == 0 else "en"
            text = ("天" if lang == "zh" else "a") * 100
            writer.write({"id": f"{k}", "text": text, "source": "s", "lang": lang, "meta": "{}"})
    documents = Documents(tmp_path)
    sizes = language_sizes(tmp_path)
    assert sizes == {"en": 39_000, "zh": 1_000}
    rates = language_rates(sizes, 40_000, alpha=0.5)
    text = "".join(sample_lines(documents, 40_000, 40_000, rates))
    assert text.count("天") == MAX_REPEATS * 1_000
    assert 33_000 < text.count("a") < 39_000
    plain = "".join(sample_lines(documents, 40_000, 40_000))
    assert plain == "".join(d.text for d in documents)


def test_without_languages_the_order_of_documents_does_not_matter():
    found = [Document(str(k), f"text {k}\n" * 9, "s", "en") for k in range(200)]
    total = sum(len(d.text) for d in found)
    some = list(sample_lines(found, total // 3, total))
    assert sorted(some) == sorted(sample_lines(found[::-1], total // 3, total))
    assert 0.2 < sum(map(len, some)) / total < 0.5
