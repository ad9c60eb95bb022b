"""The paper's printed numbers stand beside ours where it has some."""

import pandas as pd
import pytest
from figure_modules import figure

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.figures import draw_figures
from ntkprobe.figures.paper_numbers import paper_table


def test_fig6_prints_the_papers_numbers_beside_ours_where_it_has_some(runs, tmp_path):
    drawn = draw_figures(runs, tmp_path, ["fig6"], compare="paper")
    saved = pd.read_csv(tmp_path / "fig6.csv")
    pair = saved.query("observed_group == 'toxic' and updated_group == 'seemingly_toxic'")
    ours, papers = pair.set_index("run").loc["stl", ["similarity", "paper"]]
    assert (round(ours, 6), papers) == (0.32, 0.64)
    refined = saved.query("run == 'dcr-stl'")
    assert refined["paper"].isna().all()  # figure 6b has no numbers in the text
    assert len(drawn.compared["fig6"]) == 9 and "0.64" in drawn.comparison()
    module = figure("fig6")
    printed = {text.get_text() for text in module.draw(saved).axes[0].texts}
    assert "0.32\n(0.64)" in printed


def test_fig4_stands_beside_table_1_at_the_last_step(runs):
    module = figure("fig4")
    beside = module.with_paper_values(module.numbers(runs)).dropna().set_index("run")
    assert beside["step"].tolist() == [40, 40]
    assert beside["paper_compliance"].to_dict() == {"stl": 0.73, "dcr-stl": 0.98}
    assert beside["paper_safety"].to_dict() == {"stl": 0.72, "dcr-stl": 0.81}


def test_fig7_stands_beside_the_papers_bound_at_the_best_layer(runs):
    module = figure("fig7")
    beside = module.with_paper_values(module.numbers(runs)).dropna()
    assert beside[["layer", "step", "paper_bound"]].to_numpy().tolist() == [[2, 40, 0.76]] * 2


def test_other_runs_have_no_number_in_the_paper(runs):
    module = figure("fig4")
    beside = module.with_paper_values(module.numbers({"mine": runs["stl"]}))
    assert beside["paper_compliance"].isna().all()


def test_tables_hold_what_the_paper_prints():
    first = paper_table("table1").set_index(["model", "method"])
    assert len(first) == 15
    assert first.loc[("Llama-3-8B", "dcr"), ["or_bench", "piqa"]].tolist() == [0.85, 0.79]
    judged = paper_table("table5").query("method == 'dcr' and quantity == 'xstest'")
    assert judged["value"].tolist() == [0.98, 0.97, 0.96]
    # Tables 3 and 4 print 0.93 for what tables 1 and 5 give as 0.83.
    assert paper_table("table3")["or_bench"].tolist() == [0.80, 0.80, 0.93, 0.85]
    assert paper_table("table4")["or_bench"].tolist() == [0.76, 0.93, 0.80, 0.79]
    assert paper_table("table2")["minutes"].tolist() == [1, 18, 1, 21, 1, 24]


def test_tables_1_and_5_agree_where_they_print_the_same():
    keyword = paper_table("table5").query("judge in ('keyword', 'llama-guard-3-8b')")
    wide = keyword.pivot(index="method", columns="quantity", values="value")
    first = paper_table("table1").query("model == 'Qwen2.5-1.5B'").set_index("method")
    pd.testing.assert_frame_equal(wide, first.loc[wide.index, wide.columns], check_names=False)


def test_only_the_paper_can_be_compared_with(runs, tmp_path):
    with pytest.raises(UserError, match="'mine': the only choice is paper"):
        draw_figures(runs, tmp_path, ["fig6"], compare="mine")


def test_neither_dcr_nor_its_control_stands_beside_the_papers_base_model(runs):
    module = figure("fig6")
    numbers = module.numbers(runs)
    control = numbers[numbers["run"] == "stl"].assign(run="control-stl")
    told = module.with_paper_values(pd.concat([numbers, control]))
    assert told.groupby("run")["paper"].count().to_dict() == {
        "stl": 9,
        "dcr-stl": 0,
        "control-stl": 0,
    }


def test_the_command_prints_the_papers_numbers_beside_ours(folder, tmp_path, capsys):
    call = ["figures", str(folder), "--only", "fig6", "--compare", "paper"]
    assert main([*call, "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "paper" in printed and "0.64" in printed
    assert printed.strip().endswith("(fig6), each as PNG, PDF and CSV.")
