"""Which steps are measured, and which worker measures which of them."""

import pytest
from watched_runs import measure, with_kernel

from ntkprobe import UserError
from ntkprobe.watcher import Choice, parse_shard, parse_steps

# Steps


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("0:2000:100", {0, 100, 2000}),
        ("100:", {100, 150, 2000}),
        (":100", {0, 50, 100}),
        ("50,2000", {50, 2000}),
        ("::50", {0, 50, 100, 150, 2000}),
    ],
)
def test_steps_are_chosen_by_ranges_with_both_ends(spec, wanted):
    ranges = parse_steps(spec)
    assert {s for s in (0, 50, 100, 150, 2000) if any(s in r for r in ranges)} == wanted


@pytest.mark.parametrize("spec", ["", "a:b", "1:2:0", "1:2:3:4", "-5"])
def test_anything_else_is_no_range_of_steps(spec):
    with pytest.raises(UserError, match="--steps"):
        parse_steps(spec)


# Workers


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_shards_are_disjoint_and_together_everything(workers, run, tmp_path):
    steps = [
        measure(run, tmp_path / "out", choice=Choice(shard=(i, workers))).new
        for i in range(workers)
    ]
    assert sorted(step for part in steps for step in part) == [0, 10, 20]
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


def slurm_array(number, first, last, gap, count):
    values = {"ID": number, "MIN": first, "MAX": last, "STEP": gap, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("spec", "environment", "wanted"),
    [
        ("2/4", {"RANK": "0", "WORLD_SIZE": "8"}, (2, 4)),
        (None, {}, (0, 1)),
        (None, {"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        (None, slurm_array(14, 10, 18, 2, 5), (2, 5)),
        (None, slurm_array(3, 3, 3, 1, 1), (0, 1)),  # the one that failed, submitted again
        (None, slurm_array(1, 0, 2, 1, 3) | {"RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
    ],
)
def test_a_worker_learns_its_number_from_the_flag_torchrun_or_slurm(spec, environment, wanted):
    assert parse_shard(spec, environment) == wanted


@pytest.mark.parametrize("numbers", [(1, 3, 7), (0, 1, 3), (2, 4, 5)])
def test_a_slurm_array_with_gaps_is_refused_since_checkpoints_would_be_left_out(numbers):
    for number in numbers:
        environment = slurm_array(number, numbers[0], numbers[-1], 1, 3)
        with pytest.raises(UserError, match="--shard i/n"):
            parse_shard(None, environment)


def test_the_workers_of_an_array_of_torchruns_are_all_different():
    found = [
        parse_shard(None, slurm_array(i, 0, 2, 1, 3) | {"RANK": str(rank), "WORLD_SIZE": "4"})
        for i in range(3)
        for rank in range(4)
    ]
    assert found == [(worker, 12) for worker in range(12)]


def test_fixed_top_tokens_are_settled_before_workers_share_the_rest(run, tmp_path):
    settings, shard = with_kernel(top_k_at="first"), Choice(shard=(1, 2))
    with pytest.raises(UserError, match="--steps 0"):
        measure(run, tmp_path / "out", settings, choice=shard)
    measure(run, tmp_path / "out", settings, choice=Choice(steps=parse_steps("0")))
    assert measure(run, tmp_path / "out", settings, choice=shard).status == 0


@pytest.mark.parametrize("spec", ["4/4", "1", "a/b", "-1/2"])
def test_anything_else_is_no_shard(spec):
    with pytest.raises(UserError, match="--shard"):
        parse_shard(spec, {})
