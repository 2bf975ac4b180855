"""Epoch orders and label noise, held against slow twins and against the distributions they promise."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import wsl
from tests.help.thoroughness import examples
from wsl.index.shards import write_shard

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hashed(*words: int) -> int:
    state = 0
    for word in words:
        state = mix(((state + GOLDEN) & MASK) ^ word)
    return state


def permutation(n: int, keys: list[int]) -> list[int]:
    """The plain twin of the engine's permutation of 0..n."""
    bits = (n - 1).bit_length()
    low_bits = (bits + 1) // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    out = []
    for position in range(n):
        value = position
        while True:
            low, high = value & low_mask, value >> low_bits
            for r in range(0, 6, 2):
                high ^= mix(low ^ keys[r]) & high_mask
                low ^= mix(high ^ keys[r + 1]) & low_mask
            value = high << low_bits | low
            if value < n:
                break
        out.append(value)
    return out


def slow_epoch(num: int, factors: list[float] | None, seed: int, epoch: int) -> list[int]:
    """The plain twin: the list of repeated samples, then each position sent through the permutation."""
    repeated: list[int] = []
    if factors is None:
        repeated = list(range(num))
    else:
        for block in range(0, num, 64):
            offset = (hashed(1, seed, epoch, block // 64) >> 11) * 2.0**-53
            total = 0.0
            for sample in range(block, min(block + 64, num)):
                before = math.floor(total + offset)
                total += factors[sample]
                repeated += [sample] * (math.floor(total + offset) - before)
    n = len(repeated)
    keys = [hashed(2, seed, epoch, r) for r in range(6)]
    return [repeated[value] for value in permutation(n, keys)]


FACTORS = st.lists(
    st.floats(0, 5, width=32).map(lambda x: 0.0 if x < 0.1 else x), min_size=1, max_size=150
).filter(lambda f: sum(f) >= 1)


@given(st.integers(1, 200), st.integers(0, MASK))
@examples(60)
def test_without_factors_each_epoch_is_a_permutation_like_the_twin(num: int, seed: int) -> None:
    order = wsl.EpochOrder(num, seed=seed)
    stream = order[0 : 3 * num].tolist()
    for epoch in range(3):
        part = stream[epoch * num : (epoch + 1) * num]
        assert sorted(part) == list(range(num))
        assert part == slow_epoch(num, None, seed, epoch)


@given(FACTORS, st.integers(0, MASK))
@examples(60)
def test_with_factors_the_stream_is_the_twin_and_totals_vary_by_one(factors: list[float], seed: int) -> None:
    order = wsl.EpochOrder(len(factors), np.array(factors, np.float32), seed=seed)
    expected: list[int] = []
    for epoch in range(3):
        part = slow_epoch(len(factors), factors, seed, epoch)
        assert order.epoch_length(epoch) == len(part)
        expected += part
        for block in range(0, len(factors), 64):
            inside = sum(block <= sample < block + 64 for sample in part)
            assert abs(inside - math.fsum(factors[block : block + 64])) < 1 + 1e-9
    assert order[0 : len(expected)].tolist() == expected


@given(st.integers(1, 100), st.lists(st.integers(1, 50), min_size=1, max_size=8), st.booleans())
@examples(40)
def test_any_slicing_reads_the_same_stream(num: int, sizes: list[int], weighted: bool) -> None:
    factors = np.linspace(0.5, 2.5, num).astype(np.float32) if weighted and num > 2 else None
    whole = wsl.EpochOrder(num, factors, seed=9)[0 : sum(sizes)].tolist()
    order = wsl.EpochOrder(num, factors, seed=9)
    starts = np.cumsum([0, *sizes])
    pieces = [order[int(a) : int(b)].tolist() for a, b in reversed(list(itertools.pairwise(starts)))]
    assert [sample for piece in reversed(pieces) for sample in piece] == whole


def test_each_sample_appears_as_often_as_its_factor_asks() -> None:
    factors = np.random.default_rng(0).uniform(0, 3, 640).astype(np.float32)
    order = wsl.EpochOrder(640, factors, seed=3)
    epochs = 400
    length = sum(order.epoch_length(epoch) for epoch in range(epochs))
    seen = np.bincount(order[0:length], minlength=640) / epochs
    assert np.abs(seen - factors).max() < 0.13  # a Bernoulli mean of 400: five standard errors


def test_places_are_uniform() -> None:
    order = wsl.EpochOrder(50, seed=1)
    places = np.zeros((50, 50))
    for epoch in range(2000):
        places[np.arange(50), order[epoch * 50 : epoch * 50 + 50]] += 1
    statistic = ((places - 40) ** 2 / 40).sum()
    assert stats.chi2.sf(statistic, 49 * 49) > 1e-4


def test_states_are_refused_where_something_differs() -> None:
    order = wsl.EpochOrder(10, seed=1)
    assert order.check(order.state(7)) == 7
    with pytest.raises(wsl.UsageError, match="seed was 1"):
        wsl.EpochOrder(10, seed=2).check(order.state(7))
    with pytest.raises(wsl.UsageError, match="repeat factors"):
        wsl.EpochOrder(10, np.ones(10, np.float32), seed=1).check(order.state(7))


@pytest.mark.parametrize(
    ("num", "factors", "message"),
    [
        (0, None, "at least one sample"),
        (2, [1.0], "one for each of 2 samples"),
        (1, [float("nan")], "sample 0 has NaN"),
        (1, [-1.0], "sample 0 has -1"),
        (2, [0.2, 0.3], "an epoch would be empty"),
    ],
)
def test_orders_that_cannot_be_are_refused(num: int, factors: list[float] | None, message: str) -> None:
    array = None if factors is None else np.array(factors, np.float32)
    with pytest.raises(wsl.UsageError, match=message):
        wsl.EpochOrder(num, array, seed=0)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> wsl.Index:
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    tags = [sorted({f"t{n}" for n in rng.zipf(1.5, rng.integers(1, 5)) % 12}) for _ in range(3000)]
    write_shard(folder / "a.tar", [(f"s{n}", {"png": b"x"}) for n in range(3000)])
    records = pl.DataFrame({"key": [f"s{n}" for n in range(3000)], "hashtags": tags})
    return wsl.build_index(folder / "index", [folder / "a.tar"], records=records, label_kind="hashtag")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_noise_replaces_its_share_and_never_by_a_label_of_the_image(tagged: wsl.Index, share: float) -> None:
    everything = np.arange(len(tagged))
    clean = tagged.labels(everything)
    noisy = wsl.label_noise(tagged, everything, share=share, seed=4)
    replaced = total = 0
    for before, after in zip(clean, noisy, strict=True):
        assert len(before) == len(after) == len(set(after.tolist()))
        changed = before != after
        assert not set(after[changed].tolist()) & set(before.tolist())
        replaced += int(changed.sum())
        total += len(before)
    error = math.sqrt(share * (1 - share) / total)
    assert abs(replaced / total - share) <= 5 * error
    backwards = wsl.label_noise(tagged, everything[::-1], share=share, seed=4)
    assert all(a.tolist() == b.tolist() for a, b in zip(noisy, reversed(backwards), strict=True))


def test_noise_draws_from_the_marginal_distribution(tagged: wsl.Index) -> None:
    ordinals = np.array([n for n, row in enumerate(tagged.labels(np.arange(3000))) if row.tolist() == [0]])
    assert len(ordinals) > 50
    counts = tagged.label_counts().astype(float)
    drawn = np.zeros(len(counts))
    for seed in range(60):
        for row in wsl.label_noise(tagged, ordinals, share=1.0, seed=seed):
            drawn[row[0]] += 1
    assert drawn[0] == 0
    expected = counts[1:] / counts[1:].sum() * drawn.sum()
    assert stats.chisquare(drawn[1:], expected).pvalue > 1e-4


def test_noise_stays_where_no_label_is_left(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("s", {"png": b"x"})])
    records = pl.DataFrame({"key": ["s"], "hashtags": [["a", "b"]]})
    index = wsl.build_index(tmp_path / "i", [tmp_path / "a.tar"], records=records, label_kind="hashtag")
    assert wsl.label_noise(index, np.array([0]), share=1.0, seed=0)[0].tolist() == [0, 1]
    with pytest.raises(wsl.UsageError, match="from 0 to 1"):
        wsl.label_noise(index, np.array([0]), share=1.5, seed=0)


def slow_windows(firsts: list[int], num: int, size: int, seed: int, epoch: int) -> list[int]:
    """The plain twin of a window: shards shuffled, windows of them shuffled by position."""

    bounds = sorted({*firsts, num})
    shards = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
    order = permutation(len(shards), [hashed(3, seed, epoch, r) for r in range(6)])
    out: list[int] = []
    for number, start in enumerate(range(0, len(shards), size)):
        inside = [sample for shard in order[start : start + size] for sample in shards[shard]]
        keys = [hashed(4, seed, epoch, number, r) for r in range(6)]
        out += [inside[place] for place in permutation(len(inside), keys)]
    return out


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> wsl.Index:
    folder = tmp_path_factory.mktemp("window")
    paths, number = [], 0
    for place, size in enumerate([70, 1, 130, 64, 33, 90, 200, 12, 64, 40]):
        paths.append(folder / f"{place}.tar")
        write_shard(paths[-1], [(f"s{n}", {"png": b"x"}) for n in range(number, number + size)])
        number += size
    return wsl.build_index(folder / "index", paths)


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_a_window_is_its_twin_and_holds_as_many_shards_at_a_time(many_shards: wsl.Index, size: int) -> None:
    order = wsl.EpochOrder(many_shards, seed=8, window=size)
    firsts = many_shards.shards()["first_sample"].to_list()
    num = len(many_shards)
    expected = [s for epoch in range(2) for s in slow_windows(firsts, num, size, 8, epoch)]
    assert order[0 : 2 * num].tolist() == expected
    assert order[100:300].tolist() == expected[100:300]


def test_a_window_with_factors_shows_each_sample_as_often_as_the_whole(many_shards: wsl.Index) -> None:
    num = len(many_shards)
    factors = np.random.default_rng(0).uniform(0, 3, num).astype(np.float32)
    whole = wsl.EpochOrder(many_shards, factors, seed=5)
    order = wsl.EpochOrder(many_shards, factors, seed=5, window=2)
    start = 0
    for epoch in range(3):
        length = whole.epoch_length(epoch)
        assert order.epoch_length(epoch) == length
        one, other = whole[start : start + length], order[start : start + length]
        assert np.bincount(one, minlength=num).tolist() == np.bincount(other, minlength=num).tolist()
        start += length


def test_mixing_tells_a_window_from_a_full_shuffle(many_shards: wsl.Index) -> None:
    wide = wsl.EpochOrder(many_shards, seed=1, window=10).mixing(32)
    narrow = wsl.EpochOrder(many_shards, seed=1, window=2).mixing(32)
    assert 0.6 < wide.variance < 1.4
    assert narrow.variance > 2 * wide.variance
    assert narrow.shards_per_batch <= 3 < wide.shards_per_batch
    assert narrow.effective_batch == pytest.approx(32 / narrow.variance)
    with pytest.raises(wsl.UsageError, match="needs an index"):
        wsl.EpochOrder(10, window=2)
    with pytest.raises(wsl.UsageError, match="where it has a window"):
        wsl.EpochOrder(many_shards).mixing(8)


def test_factors_of_a_file_are_those_in_memory_and_a_changed_file_is_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    factors = rng.uniform(0, 2, 64 * 16 * 5 + 77).astype(np.float32)
    path = tmp_path / "factors.f32"
    factors.tofile(path)
    memory = wsl.EpochOrder(len(factors), factors, seed=4)
    for source in (path, np.memmap(path, dtype=np.float32, mode="r"), str(path)):
        order = wsl.EpochOrder(len(factors), source, seed=4)
        assert order.fingerprint == memory.fingerprint
        assert (order[1000:20000] == memory[1000:20000]).all()
    sums = tmp_path / "factors.f32.sums"
    stamp = sums.stat().st_mtime_ns
    wsl.EpochOrder(len(factors), path, seed=4)
    assert sums.stat().st_mtime_ns == stamp
    damaged = bytearray(sums.read_bytes())
    damaged[100] ^= 1
    sums.unlink()
    sums.write_bytes(bytes(damaged))
    assert (wsl.EpochOrder(len(factors), path, seed=4)[0:5000] == memory[0:5000]).all()
    factors[5] = 7
    path.unlink()
    factors.tofile(path)
    changed = wsl.EpochOrder(len(factors), path, seed=4)
    assert changed.fingerprint != memory.fingerprint
    assert changed.fingerprint == wsl.EpochOrder(len(factors), factors, seed=4).fingerprint
    with pytest.raises(wsl.UsageError, match="one for each of 10 samples"):
        wsl.EpochOrder(10, path)
    factors[9] = np.inf
    factors.tofile(tmp_path / "bad.f32")
    with pytest.raises(wsl.UsageError, match="sample 9 has inf"):
        wsl.EpochOrder(len(factors), tmp_path / "bad.f32")


def test_factors_of_an_index_are_written_and_mapped(tagged: wsl.Index, tmp_path: Path) -> None:
    path = tmp_path / "factors.f32"
    written = wsl.repeat_factors(tagged, scheme="uniform", threshold=0.1, out=path)
    assert isinstance(written, np.memmap)
    assert (written == wsl.repeat_factors(tagged, scheme="uniform", threshold=0.1)).all()
    assert wsl.EpochOrder(tagged, written).fingerprint == wsl.EpochOrder(tagged, path).fingerprint


def test_an_order_goes_to_another_process_as_what_it_is_made_of(many_shards: wsl.Index) -> None:
    order = wsl.EpochOrder(many_shards, seed=3, window=4)
    again = pickle.loads(pickle.dumps(order))
    assert (again[5:500] == order[5:500]).all()
    assert again.fingerprint == order.fingerprint


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 9)), min_size=1, max_size=4),
    st.integers(0, 20_000),
    st.integers(1, 3000),
)
@examples(30)
def test_a_mixed_order_keeps_its_weights_and_reads_each_stream_on(
    parts: list[tuple[int, float]], start: int, length: int
) -> None:
    orders = [wsl.EpochOrder(size, seed=n) for n, (size, _) in enumerate(parts)]
    mixed = wsl.MixedOrder(orders, [weight for _, weight in parts], seed=6)
    stream = mixed[0 : start + length]
    assert mixed[start : start + length].tolist() == stream[start:].tolist()
    firsts = np.cumsum([0, *(size for size, _ in parts)])
    source = np.searchsorted(firsts, stream, side="right") - 1
    total = sum(weight for _, weight in parts)
    for number, order in enumerate(orders):
        mine = stream[source == number] - firsts[number]
        assert mine.tolist() == order[0 : len(mine)].tolist()
        whole = len(stream) // 4096 * 4096
        share = (source[:whole] == number).mean() if whole else parts[number][1] / total
        assert share == pytest.approx(parts[number][1] / total, abs=len(parts) / 4096)


def test_joined_indexes_answer_for_a_mixed_order(many_shards: wsl.Index, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [(f"o{n}", {"png": f"other {n}".encode()}) for n in range(5)])
    other = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    joined = wsl.JoinedIndex([many_shards, other])
    orders = [wsl.EpochOrder(many_shards), wsl.EpochOrder(other)]
    mixed = wsl.MixedOrder(orders, [1, 1])
    keys = joined.keys(mixed[0:200])
    assert sum(key.startswith("o") for key in keys) > 50
    assert joined.read([len(many_shards) + 3, 0]) == [b"other 3", b"x"]
    assert mixed.check(mixed.state(9)) == 9
    with pytest.raises(wsl.UsageError, match="another epoch order"):
        wsl.MixedOrder(orders, [1, 2]).check(mixed.state(9))
    with pytest.raises(wsl.UsageError, match="positive"):
        wsl.MixedOrder(orders, [1, 0])
    with pytest.raises(wsl.UsageError, match="run from 0"):
        joined.keys([len(joined)])
    wsl.drop_samples(other.path, ["o3"])
    joined = wsl.JoinedIndex([many_shards, wsl.Index.open(other.path)])
    assert joined.dropped.tolist() == [len(many_shards) + 3]
    assert joined.read([len(many_shards) + 3]) == [b""]
