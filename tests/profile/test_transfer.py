import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from trimtab.core.errors import InputError
from trimtab.profile.transfer import Prior, choose, fit_prior, predict

UNSEEN = ("titan_rtx_256", "gold_6226", "fpga", "pixel2", "raspi4", "eyeriss")


def devices(rng, count, hidden=0.0):
    """Tables [300, count] of devices whose operations have costs of their own, and of a part that no feature shows."""
    counts = rng.integers(0, 5, (300, 4)).astype(float)
    secret = rng.normal(size=(300, 1))
    costs = rng.uniform(0.5, 3.0, (4, count))
    return counts, 5.0 + counts @ costs + hidden * secret @ rng.uniform(-1.0, 1.0, (1, count))


def test_ten_measurements_recover_a_device_of_the_same_kind():
    rng = np.random.default_rng(0)
    counts, table = devices(rng, 13)
    prior = fit_prior(table[:, :12], counts)
    index = choose(prior, 10)
    assert len(set(index.tolist())) == 10
    new = 1000.0 * table[:, 12]  # a thousand times slower: the scale is not known beforehand
    found = predict(prior, index, new[index])
    assert np.abs(found.latency / new - 1).max() < 0.01
    assert (np.abs(found.latency - new) < 3 * found.deviation).all()


def test_latents_learn_what_no_feature_shows():
    rng = np.random.default_rng(1)
    counts, table = devices(rng, 21, hidden=3.0)
    new = table[:, 20]
    blind, seeing = (fit_prior(table[:, :20], counts, latents) for latents in (0, 1))
    error = []
    for prior in (blind, seeing):
        index = choose(prior, 10)
        error.append(np.abs(predict(prior, index, new[index]).latency - new).mean() / new.mean())
    assert error[1] < 0.01 < 0.03 < error[0]


def test_prior_is_the_mean_and_shrunk_covariance_of_the_coefficients():
    feature = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    # mean 2 and slope 1, mean 4 and slope 4: relative slopes 0.5 and 1, without any residual
    table = np.array([[1.0, 1e-9], [3.0, 8.0], [1.0, 1e-9], [3.0, 8.0]])
    prior = fit_prior(table, feature)
    np.testing.assert_allclose(prior.mean, [1.0, 0.75], atol=1e-6)
    np.testing.assert_allclose(prior.covariance, [[1e-6, 0], [0, 0.125 + 1e-6]], atol=1e-8)
    np.testing.assert_allclose(prior.noise, 1e-3)


def test_posterior_is_ridge_regression_about_the_prior():
    basis = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, -1.0]])
    mean, covariance, noise = np.array([1.0, 0.5]), np.array([[0.04, 0.01], [0.01, 0.09]]), 0.2
    index, times = np.array([0, 2, 3]), np.array([2.2, 5.0, 0.8])
    found = predict(Prior(basis, mean, covariance, np.array([noise])), index, times)

    rows = basis[index]
    joint = rows @ covariance @ rows.T + noise**2 * np.eye(3)

    def log_likelihood(scale):
        left = times - scale * rows @ mean
        return -3 * np.log(scale) - left @ np.linalg.solve(joint, left) / (2 * scale**2)

    scales = np.linspace(1.0, 4.0, 300_001)
    scale = scales[np.argmax([log_likelihood(s) for s in scales[::100]]) * 100]
    near = np.linspace(scale - 2e-3, scale + 2e-3, 4001)
    scale = near[np.argmax([log_likelihood(s) for s in near])]

    precision = rows.T @ rows / noise**2 + np.linalg.inv(covariance)
    weights = mean + np.linalg.solve(precision, rows.T @ (times / scale - rows @ mean) / noise**2)
    spread = basis @ np.linalg.inv(precision) @ basis.T
    np.testing.assert_allclose(found.latency, scale * basis @ weights, rtol=1e-5)
    np.testing.assert_allclose(found.deviation, scale * np.sqrt(np.diag(spread) + noise**2), rtol=1e-5)


def test_one_measurement_of_a_device_at_the_mean_scales_it():
    basis, mean = np.array([[1.0, 0.0], [1.0, 2.0]]), np.array([1.0, 0.25])
    found = predict(Prior(basis, mean, 1e-12 * np.eye(2), np.array([1e-6])), [1], [3.0])
    np.testing.assert_allclose(found.latency, [2.0, 3.0], rtol=1e-5)


def test_noise_is_the_level_that_the_measurements_show():
    rng = np.random.default_rng(2)
    basis = np.column_stack([np.ones(40), rng.uniform(-1.0, 1.0, size=40)])
    prior = Prior(basis, np.array([1.0, 0.3]), 0.01 * np.eye(2), np.array([0.001, 0.1]))
    exact = basis @ [1.0, 0.35]
    quiet = predict(prior, np.arange(20), exact[:20])
    loud = predict(prior, np.arange(20), (exact + rng.normal(0, 0.1, 40))[:20])
    assert quiet.deviation.max() < 0.01
    assert 0.08 < loud.deviation.min() < loud.deviation.max() < 0.2


def test_the_first_choice_lessens_the_summed_variance_most():
    rng = np.random.default_rng(3)
    counts, table = devices(rng, 8)
    prior = fit_prior(table + rng.normal(0, 0.3, table.shape), counts)
    noise = np.median(prior.noise) ** 2
    left = []
    for row in prior.basis[:60]:
        p = np.linalg.inv(np.linalg.inv(prior.covariance) + np.outer(row, row) / noise)
        left.append(np.trace(prior.basis @ p @ prior.basis.T))
    assert choose(prior, 1, np.arange(60))[0] == np.argmin(left)


def test_only_candidates_are_chosen_and_each_once():
    counts, table = devices(np.random.default_rng(4), 6)
    assert sorted(choose(fit_prior(table, counts), 3, [7, 3, 3, 11])) == [3, 7, 11]


TABLE, FEATURES = np.ones((4, 3)) + np.arange(4)[:, None], np.arange(4.0)[:, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latencies": TABLE[:, 0]}, r"fit_prior: latencies: got shape \(4,\), expected \[architectures, columns\]"),
        ({"latencies": TABLE[:, :1]}, "got 1 device, expected at least 2"),
        ({"latencies": -TABLE}, "fit_prior: latencies: got -4, expected above 0"),
        ({"latencies": np.where(TABLE == 3, np.nan, TABLE)}, "row 2, column 0: got nan, expected a finite number"),
        ({"features": FEATURES[:3]}, "features: got 3 rows, expected 4"),
        ({"features": np.full((4, 1), np.inf)}, "fit_prior: features: row 0, column 0: got inf"),
        ({"latents": 4}, "latents: got 4, expected 0 to 3"),
        ({"latents": -1}, "latents: got -1, expected 0 to 3"),
    ],
)
def test_a_wrong_table_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        fit_prior(**{"latencies": TABLE, "features": FEATURES, **change})


@pytest.mark.parametrize(
    ("measured", "latencies", "message"),
    [
        ([], [], "measured: got shape \\(0,\\), expected a list of at least one index"),
        ([0, 4], [1.0, 1.0], r"measured: got \[0, 4\], expected whole numbers from 0 to 3"),
        ([-1], [1.0], "whole numbers from 0 to 3"),
        ([0.5], [1.0], "whole numbers"),
        ([0, 1], [1.0], r"latencies: got shape \(1,\), expected \(2,\)"),
        ([0, 1], [1.0, np.nan], "latencies: measurement 1: got nan, expected a finite number above 0"),
        ([0], [0.0], "measurement 0: got 0.0, expected a finite number above 0"),
    ],
)
def test_wrong_measurements_are_refused(measured, latencies, message):
    with pytest.raises(InputError, match=message):
        predict(fit_prior(TABLE, FEATURES), measured, latencies)


@pytest.mark.parametrize("k", [0, 5])
def test_a_wrong_number_to_choose_is_refused(k):
    with pytest.raises(InputError, match=f"choose: k: got {k}, expected 1 to 4"):
        choose(fit_prior(TABLE, FEATURES), k)


@pytest.mark.data
def test_ten_cells_tell_the_ranks_of_all_on_six_unseen_devices():
    path = Path(os.environ.get("TRIMTAB_DATA") or Path("..") / "shared" / "data") / "nasbench201.npz"
    if not path.is_file():
        pytest.skip("nasbench201.npz is not here")
    data = np.load(path, allow_pickle=False)
    table, names = data["latency"].astype(float), [str(c) for c in data["latency_columns"]]
    kinds = [list(data["op_names"]).index(k) for k in data["op_names"] if k != "none"]
    counts = np.stack([(data["ops"] == k).sum(axis=1) for k in kinds], axis=1)
    kept = [i for i, n in enumerate(names) if n not in UNSEEN and not n.startswith("titan_rtx")]
    prior = fit_prior(table[:, kept], counts)
    healthy = np.flatnonzero(table[:, names.index("raspi4")] >= 2)
    # an operation from the input to the output: the network computes something
    joined = np.flatnonzero(data["ops"][:, 3] != list(data["op_names"]).index("none"))
    rng = np.random.default_rng(0)
    choices = [choose(prior, 10, joined), *(rng.choice(joined, 10, replace=False) for _ in range(5))]
    ranks = np.empty((len(choices), len(UNSEEN)))
    for row, index in enumerate(choices):
        for column, device in enumerate(UNSEEN):
            truth = table[:, names.index(device)]
            counted = np.setdiff1d(healthy if device == "raspi4" else np.arange(len(truth)), index)
            found = predict(prior, index, truth[index]).latency
            ranks[row, column] = spearmanr(found[counted], truth[counted])[0]
    assert ranks[0].mean() >= 0.96  # designed; 0.945 is asked for, HELP prints 0.932
    assert ranks[1:].mean() >= 0.945  # drawn at random
