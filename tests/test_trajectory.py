import json
import os
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from safetensors.numpy import save_file

from ntkprobe.errors import UserError
from ntkprobe.kernel_drift import cosine_distance
from ntkprobe.storage import write_json, write_table
from ntkprobe.trajectory import Trajectory

GROUPS = ["normal", "normal", "seemingly_toxic", "seemingly_toxic", "toxic"]


def kernel_table(step, norms):
    n = len(norms)
    return pd.DataFrame(
        {
            "step": step,
            "observed": np.repeat(np.arange(n), n),
            "updated": np.tile(np.arange(n), n),
            "norm": norms.ravel(),
        }
    )


def refusal_table(step, n, **columns):
    table = {"step": step, "prompt": range(n), "phrase_set": "paper31", "reduction": "literal"}
    log_probability = np.log(np.linspace(0.1, 0.9, n))
    return pd.DataFrame({**table, "log_probability": log_probability, "refuses": None, **columns})


def random_norms(seed, n=5):
    return np.random.default_rng(seed).uniform(0.5, 3, size=(n, n))


def write_run(folder, steps=(0, 10)):
    write_json(folder / "run.json", {"schema_version": 1})
    about = pd.DataFrame({"prompt": range(len(GROUPS)), "group": GROUPS})
    write_table(folder / "prompts.parquet", about.assign(text=[f"prompt {i}" for i in range(5)]))
    for step in steps:
        write_step(folder, step)
    return folder


def write_step(folder, step, **columns):
    name = f"step-{step:08d}.parquet"
    write_table(folder / "kernel" / name, kernel_table(step, random_norms(step)).assign(**columns))
    write_table(folder / "refusal" / name, refusal_table(step, len(GROUPS)))


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run-ntk")


def pairs_of(table, step):
    rows = table[table["step"] == step]
    return lambda column: rows.pivot(index="observed", columns="updated", values=column).to_numpy()


def test_the_papers_similarity_divides_each_row_by_the_observed_prompts_own_norm(folder):
    norms = random_norms(10)
    similarity = pairs_of(Trajectory(folder).kernel(), 10)("similarity")
    np.testing.assert_allclose(similarity, norms / np.diag(norms)[:, None])


def test_similarity_of_a_prompt_with_itself_is_one(folder):
    table = Trajectory(folder).kernel()
    own = table[table["observed"] == table["updated"]]
    assert (own["similarity"] == 1).all()
    np.testing.assert_allclose(own["symmetric_similarity"], 1)


def test_symmetric_similarity_of_a_symmetric_kernel_is_symmetric(folder):
    norms = random_norms(10) + random_norms(10).T
    write_table(folder / "kernel" / "step-00000010.parquet", kernel_table(10, norms))
    values = pairs_of(Trajectory(folder).kernel(), 10)
    np.testing.assert_allclose(values("symmetric_similarity"), values("symmetric_similarity").T)
    assert not np.allclose(values("similarity"), values("similarity").T)


def test_tables_carry_the_groups_of_both_prompts(folder):
    table = Trajectory(folder).kernel()
    assert list(table.columns[:6]) == [
        "step",
        "observed",
        "updated",
        "observed_group",
        "updated_group",
        "norm",
    ]
    row = table[(table["observed"] == 4) & (table["updated"] == 1)].iloc[0]
    assert (row["observed_group"], row["updated_group"]) == ("toxic", "normal")


def test_group_means_are_the_means_of_their_pairs_without_self_pairs(folder):
    table = Trajectory(folder).kernel()
    apart = table[table["observed"] != table["updated"]]
    keys = ["step", "observed_group", "updated_group"]
    wanted = apart.groupby(keys)["similarity"].agg(["mean", "size"])
    found = Trajectory(folder).group_means().set_index(keys).sort_index()
    np.testing.assert_allclose(found["similarity"], wanted["mean"])
    assert (found["pairs"] == wanted["size"]).all()


def test_a_group_of_one_prompt_has_no_pairs_with_itself_unless_self_pairs_count(folder):
    def own(**options):
        table = Trajectory(folder).group_means(**options)
        return table[(table["observed_group"] == "toxic") & (table["updated_group"] == "toxic")]

    assert own().empty
    assert (own(self_pairs=True)["similarity"] == 1).all()


def oracle_interval(matrix, first, second, draws):
    """Write the bootstrap out: draw prompts, list their pairs, average."""
    means = []
    for a, b in draws:
        pairs = [matrix[first[i], second[j]] for i in a for j in b if first[i] != second[j]]
        means += [np.mean(pairs)] if pairs else []
    return np.percentile(means, [2.5, 97.5])


def test_intervals_agree_with_a_bootstrap_written_out(tmp_path):
    folder, rng = write_run(tmp_path, steps=()), np.random.default_rng(1)
    norms = rng.uniform(0.5, 3, size=(12, 12))
    groups = ["normal"] * 6 + ["toxic"] * 6
    write_table(folder / "prompts.parquet", pd.DataFrame({"prompt": range(12), "group": groups}))
    write_table(folder / "kernel" / "step-00000001.parquet", kernel_table(1, norms))
    table = Trajectory(folder).group_means(resamples=4000)
    matrix, low, high = norms / np.diag(norms)[:, None], np.arange(6), np.arange(6, 12)
    for first, second in [(low, low), (low, high)]:
        draws = [(rng.integers(6, size=6), rng.integers(6, size=6)) for _ in range(4000)]
        draws = [(a, a) if first is second else (a, b) for a, b in draws]
        wanted = oracle_interval(matrix, first, second, draws)
        found = table[(table["observed_group"] == groups[first[0]])]
        found = found[found["updated_group"] == groups[second[0]]][["low", "high"]].to_numpy()[0]
        assert np.abs(found - wanted).max() < 0.1 * (wanted[1] - wanted[0])


def test_intervals_hold_the_mean_and_repeat_with_the_seed(folder):
    table = Trajectory(folder).group_means(seed=3)
    assert ((table["low"] <= table["similarity"]) & (table["similarity"] <= table["high"])).all()
    pd.testing.assert_frame_equal(table, Trajectory(folder).group_means(seed=3))


def test_a_probability_is_the_exponential_and_an_answer_not_generated_is_missing(folder):
    table = Trajectory(folder).refusal()
    np.testing.assert_allclose(table["probability"], np.exp(table["log_probability"]))
    assert table["refuses"].isna().all() and table["refuses"].dtype == "boolean"
    assert table["group"].tolist() == GROUPS * 2


def test_a_step_measured_before_there_was_a_bound_is_its_own_bound(folder):
    bounded = refusal_table(10, len(GROUPS))
    bounded["upper"] = bounded["log_probability"] + 1e-5
    write_table(folder / "refusal" / "step-00000010.parquet", bounded)
    table = Trajectory(folder).refusal().set_index("step")
    gap = table["upper"] - table["log_probability"]
    np.testing.assert_allclose(gap.loc[0], 0)
    np.testing.assert_allclose(gap.loc[10], 1e-5, rtol=1e-6)


def test_a_file_added_while_reading_is_there_at_the_next_look(folder):
    run = Trajectory(folder)
    assert run.steps == [0, 10]
    write_step(folder, 20)
    assert run.steps == [0, 10, 20] and set(run.kernel()["step"]) == {0, 10, 20}


def test_files_under_hidden_names_are_not_read(folder):
    (folder / "kernel" / ".step-00000020.parquet.abc.tmp").write_bytes(b"PAR1")
    assert Trajectory(folder).steps == [0, 10] and len(Trajectory(folder).kernel()) == 50


def test_a_column_that_newer_files_have_is_missing_from_the_older_ones(folder):
    write_step(folder, 20, extra=1.5)
    table = Trajectory(folder).kernel()
    assert table["extra"].notna().sum() == 25 and len(table) == 75


def test_a_folder_without_one_table_gives_an_empty_one_with_its_columns(tmp_path):
    run = Trajectory(write_run(tmp_path / "empty", steps=()))
    assert run.steps == [] and run.kernel().empty and run.refusal().empty
    assert run.group_means().empty and "similarity" in run.group_means()
    assert "probability" in run.refusal()


def test_a_folder_of_anything_else_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no measurements in"):
        Trajectory(tmp_path)


def test_a_torn_file_is_named(folder):
    path = folder / "kernel" / "step-00000010.parquet"
    os.truncate(path, 100)
    with pytest.raises(UserError, match="step-00000010"):
        Trajectory(folder).kernel()


def by_pandas(folder):
    return pd.read_parquet(folder)["norm"].tolist()


def by_pyarrow(folder):
    return ds.dataset(folder).to_table()["norm"].to_pylist()


def by_duckdb(folder):
    query = f"select norm from '{folder}/*.parquet' order by step, observed, updated"
    return [norm for (norm,) in duckdb.sql(query).fetchall()]


@pytest.mark.parametrize("read", [by_pandas, by_pyarrow, by_duckdb])
def test_pandas_pyarrow_and_duckdb_read_the_same_folder_also_while_it_grows(read, folder):
    (folder / "kernel" / ".step-00000020.parquet.abc.tmp").write_bytes(b"PAR1")
    assert read(folder / "kernel") == Trajectory(folder).kernel()["norm"].tolist()


def test_only_the_steps_asked_for_are_read(folder):
    (folder / "kernel" / "step-00000000.parquet").write_bytes(b"torn")
    run = Trajectory(folder, steps=[10])
    assert run.steps == [10] and set(run.group_means()["step"]) == {10}


def test_reading_measurements_does_not_load_torch(kept):
    code = (
        "import sys; from ntkprobe import Trajectory;"
        f"run = Trajectory({str(kept)!r}); run.group_means(); run.drift()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_are_those_of_run_json(folder):
    assert Trajectory(folder).settings == json.loads((folder / "run.json").read_text())
    (folder / "run.json").unlink()
    assert Trajectory(folder).settings == {}


def test_refusal_means_are_the_means_of_the_prompts(folder):
    means = Trajectory(folder).refusal_means().set_index(["step", "group"])
    assert means.loc[(10, "normal"), "probability"] == pytest.approx((0.1 + 0.3) / 2)
    assert means["refusal_rate"].isna().all() and len(means) == 6


def test_a_trajectory_draws_what_was_measured(folder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run = Trajectory(folder)
    assert len(run.plot().get_lines()) == 8 and run.plot().get_ylim()[0] == 0
    ax = run.plot(what="refusal")
    assert [line.get_xdata().tolist() for line in ax.get_lines()] == [[0, 10]] * 3
    assert run.plot(ax) is ax
    with pytest.raises(UserError, match="choose kernel, refusal or drift"):
        run.plot(what="parts")


# --- drift ---


def random_blocks(seed, n=5, k=2):
    return np.random.default_rng(seed).normal(size=(n, k, n, k)).astype(np.float32)


def keep(folder, step, blocks, ids=(7, 3)):
    (folder / "blocks").mkdir(exist_ok=True)
    save_file({"blocks": blocks}, folder / "blocks" / f"step-{step:08d}.safetensors")
    n, k = blocks.shape[:2]
    rows = {"step": step, "prompt": np.repeat(range(n), k), "rank": list(range(k)) * n}
    table = pd.DataFrame({**rows, "token": list(ids) * n, "text": "a"})
    write_table(folder / "tokens" / f"step-{step:08d}.parquet", table)


@pytest.fixture
def kept(folder):
    prompts = pd.read_parquet(folder / "prompts.parquet").assign(in_kernel=True)
    write_table(folder / "prompts.parquet", prompts)
    write_step(folder, 20)
    for step, scale in ((0, 1), (10, 1), (20, 3)):
        keep(folder, step, scale * random_blocks(step % 20))
    return folder


def test_drift_is_one_minus_the_cosine_with_the_first_step_by_pair_of_groups(kept):
    a, b = (random_blocks(step).astype(float)[:2, :, 4:] for step in (0, 10))
    wanted = 1 - (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    table = Trajectory(kept).drift().set_index(["step", "observed_group", "updated_group"])
    assert table.loc[(10, "normal", "toxic"), "drift"] == pytest.approx(wanted, rel=1e-12)
    assert table.loc[(10, "normal", "toxic"), "pairs"] == 2 and len(table) == 3 * (1 + 9)


def test_drift_of_the_whole_kernel_is_over_all_pairs_and_has_no_groups(kept):
    table = Trajectory(kept).drift()
    whole = table[table["observed_group"].isna()].set_index("step")
    a, b = (random_blocks(step).astype(float).ravel() for step in (0, 10))
    assert whole.loc[10, "drift"] == pytest.approx(1 - np.corrcoef(a, b)[0, 1], rel=0.05)
    wanted = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert whole.loc[10, "drift"] == pytest.approx(wanted, rel=1e-12)
    assert whole["pairs"].tolist() == [25] * 3 and whole["updated_group"].isna().all()


def test_the_first_kernel_and_any_multiple_of_it_have_not_drifted(kept):
    table = Trajectory(kept).drift()
    assert (table.loc[table["step"] == 0, "drift"] == 0).all()
    assert table.loc[table["step"] == 20, "drift"].between(0, 1e-12).all()
    assert (table.loc[table["step"] == 10, "drift"] > 0.1).all()


def test_a_small_turn_loses_no_digits_and_the_opposite_is_two():
    first, across = np.eye(2)
    assert cosine_distance(first, first + 1e-9 * across) == pytest.approx(5e-19, rel=1e-6)
    assert cosine_distance(first, -first) == pytest.approx(2) and cosine_distance(
        first, across
    ) == pytest.approx(1)
    assert np.isnan(cosine_distance(first, 0 * first))


def test_drift_is_from_the_first_of_the_steps_asked_for(kept):
    table = Trajectory(kept, steps=[10, 20]).drift()
    assert (table.loc[table["step"] == 10, "drift"] == 0).all()
    assert (table.loc[table["step"] == 20, "drift"] > 0.1).all()


def test_drift_without_blocks_or_at_moving_tokens_is_refused_with_the_way_out(kept):
    keep(kept, 20, random_blocks(0), ids=(7, 4))
    with pytest.raises(UserError, match=r"other tokens at step 20 .*--top-k-at first --keep-bl"):
        Trajectory(kept).drift()
    (kept / "blocks" / "step-00000010.safetensors").unlink()
    with pytest.raises(UserError, match=r"no blocks of the kernel at step 10: .*--keep-blocks"):
        Trajectory(kept).drift()


def test_drift_of_an_ordinary_run_or_an_empty_one_asks_for_blocks(folder, tmp_path):
    for run in (folder, write_run(tmp_path / "empty", steps=())):
        with pytest.raises(UserError, match=r"no blocks of the kernel: .*--top-k-at first"):
            Trajectory(run).drift()


def test_blocks_are_read_by_step_and_what_is_missing_or_torn_is_named(kept):
    run = Trajectory(kept)
    assert np.array_equal(run.blocks(10), random_blocks(10))
    with pytest.raises(UserError, match=r"no blocks of step 5: it has them of \[0, 10, 20\]"):
        run.blocks(5)
    os.truncate(kept / "blocks" / "step-00000010.safetensors", 50)
    with pytest.raises(UserError, match=r"step-00000010\.safetensors is not whole"):
        run.drift()


def test_a_trajectory_draws_its_drift(kept, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    ax = Trajectory(kept).plot(what="drift")
    assert len(ax.get_lines()) == 1 + 6 and ax.get_legend() is not None  # K is symmetric
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[[0, 2]], 0, atol=1e-12)


def test_what_jupyter_shows_of_a_trajectory_is_escaped(tmp_path):
    folder = write_run(tmp_path / "<script>", steps=range(0, 80, 10))
    prompts = pd.read_parquet(folder / "prompts.parquet")
    prompts["group"] = prompts["group"].replace({"toxic": "<script>alert(1)</script> $x$"})
    write_table(folder / "prompts.parquet", prompts)
    shown = Trajectory(folder)._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;alert" in shown
    assert "8 steps, 0 to 70" in shown and "2 normal" in shown and shown.count("<table") == 2


def test_a_trajectory_without_steps_shows_itself(tmp_path):
    assert "no steps yet" in Trajectory(write_run(tmp_path / "run", steps=()))._repr_html_()
