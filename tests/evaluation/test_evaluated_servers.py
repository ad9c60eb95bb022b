"""`ntkprobe evaluate` with a server that answers or judges, fails, or is not there."""

from evaluate_calls import QUICK, TINY, mistake
from fake_server import fake_server

from ntkprobe.evaluation.results import Evaluation


def test_a_server_is_asked_each_prompt_once_and_failures_are_asked_again(call, answers, tmp_path):
    down = True

    def script(messages, times):
        return 400 if down and "stranger" in messages[-1]["content"] else "I cannot help."

    with fake_server(script) as server:
        flags = ["--base-url", server.base_url, "--model", "org/m", "--benchmark", "tiny", *QUICK]
        status, out, _ = call(*flags)
        assert status == 1 and "are missing (status 400" in out and "again" in out
        missing = 8 - len(answers())
        down = False
        before = len(server.asked)
        status, out, _ = call(*flags)
        assert status == 0 and out.startswith(f"{missing} new answers")
        assert len(server.asked) - before == missing > 0
        assert server.bodies[0]["max_tokens"] == 6 and server.bodies[0]["temperature"] == 0
    assert answers()["n_tokens"].tolist() == [3] * 8
    assert Evaluation(tmp_path / "e").label == "m"


def test_a_server_that_is_not_there_is_one_clear_line_and_answers_stay(call, answers, tmp_path):
    with fake_server(lambda messages, times: "Well.") as server:
        url = server.base_url
        flags = ["--base-url", url, "--model", "m", "--benchmark", "tiny", *QUICK]
        call(*flags)
    (tmp_path / "e/answers/tiny/batch-00000.parquet").unlink()
    left = len(answers())
    assert f"the server {url} cannot be reached" in mistake(call(*flags))
    assert len(answers()) == left > 0


def test_a_judge_behind_a_server_that_is_gone_loses_no_answer(started, call, answers):
    judge = ["--judge", "llm:base_url=http://127.0.0.1:9/v1,model=j,retries=0"]
    assert "cannot be reached" in mistake(call(*TINY, *QUICK, *judge))
    assert len(answers()) == 8


def test_verdicts_that_a_judges_server_fails_to_give_are_told_and_asked_again(started, call):
    broken = True
    with fake_server(lambda messages, times: 500 if broken else "REFUSAL") as server:
        judge = f"j=llm:base_url={server.base_url},model=j,retries=0"
        status, out, err = call(*TINY, *QUICK, "--judge", judge)
        assert status == 1 and "8 verdicts are missing (j: status 500" in out and "again" in out
        assert err.count("nothing could be judged: 0 of 4 prompts") == 2
        broken = False
        assert call(*TINY, *QUICK, "--judge", judge)[0] == 0
    assert len(server.asked) == 16


def test_empty_answers_are_undetermined_and_told(call):
    with fake_server(lambda messages, times: "") as server:
        flags = ["--base-url", server.base_url, "--model", "m", "--benchmark", "tiny", *QUICK]
        status, out, err = call(*flags)
    assert status == 0 and "compliance unknown" in out
    assert "8 answers are empty: undetermined for every judge, incoherent in tables" in err
