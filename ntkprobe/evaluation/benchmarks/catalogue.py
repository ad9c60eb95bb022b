"""The published benchmarks: source, licence, number of rows, schema, pairs. It holds no prompts.

Numbers of rows are those of the published files. DCR's 938 safety prompts are
I-MaliciousInstructions 100 + I-CoNa 178 + I-Controversial 40 + Q-Harm 100 + AdvBench 520, if what
the paper calls HarmfulQ is Q-Harm of Safety-Tuned LLaMAs: the HarmfulQ of Shaikh et al. has 200.
The paper's 3,269 prompts of PHTest are both of its parts together.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from .schema import Benchmark, Hub

if TYPE_CHECKING:
    import pandas as pd

XSTEST_CONTRASTS = {
    "homonyms": "contrast_homonyms",
    "figurative_language": "contrast_figurative_language",
    "safe_targets": "contrast_safe_targets",
    "safe_contexts": "contrast_safe_contexts",
    "definitions": "contrast_definitions",
    "real_group_nons_discr": "contrast_discr",
    "historical_events": "contrast_historical_events",
    "privacy_fictional": "contrast_privacy",
}
"""Types of XSTest whose k-th safe prompt has the k-th prompt of the other type as its contrast.

Read off the published file: both have the same `focus` in all or 24 of 25 rows. The k-th prompts of
`nons_group_real_discr` and `privacy_public` are about other things than the k-th of their
contrasts' type, so that these 50 prompts have no pair.
"""


def xstest_pairs(prompts: "pd.DataFrame") -> Sequence[str]:
    """Return the id of each prompt's contrast in XSTest, or nothing.

    Args:
        prompts: its table, in the published order.

    Returns:
        An id or an empty text for each row; of 450 prompts 200 safe and 200 unsafe ones are paired.
    """
    ids = prompts.groupby("type", sort=False)["id"].apply(list)
    pair: dict[str, str] = {}
    for safe, unsafe in XSTEST_CONTRASTS.items():
        if safe in ids.index and unsafe in ids.index and len(ids[safe]) == len(ids[unsafe]):
            for a, b in zip(ids[safe], ids[unsafe], strict=True):
                pair[a], pair[b] = b, a
    return [pair.get(name, "") for name in prompts["id"]]


_STL = "Bianchi et al., ICLR 2024, github.com/vinid/safety-tuned-llamas, data/evaluation"
_PHTEST = partial(
    Benchmark,
    source="An et al., COLM 2024, arXiv 2409.00598",
    licence="MIT",
    rows=3269,
    text=("Request",),
    id="ID",
    type="Harmfulness",
    hub=Hub("furonghuang-lab/PHTest"),
)
# {"instructions": […]}, of which each text is read as a row with a `prompt`.
_STL_FILE = partial(Benchmark, source=_STL, licence="CC BY-NC 4.0", kind="unsafe")
_JBB = partial(
    Benchmark,
    source="Chao et al., NeurIPS 2024, arXiv 2404.01318",
    licence="MIT",
    rows=100,
    text=("Goal",),
    id="Index",
    type="Category",
)

_ALL = (
    Benchmark(
        name="xstest",
        about="250 safe prompts that sound unsafe, and 200 unsafe contrasts",
        source="Röttger et al., NAACL 2024, github.com/paul-rottger/xstest, xstest_prompts.csv",
        licence="CC BY 4.0",
        rows=450,
        id="id",
        type="type",
        kind="label",
        kinds={"safe": "safe", "unsafe": "unsafe"},
        hub=Hub("Paul/XSTest"),
        pairs=xstest_pairs,
    ),
    Benchmark(
        name="or_bench_hard",
        about="safe prompts that several models refuse (OR-Bench-Hard-1K)",
        source="Cui et al., ICML 2025, arXiv 2405.20947",
        licence="CC BY 4.0",
        rows=1319,
        type="category",
        hub=Hub("bench-llm/or-bench", "or-bench-hard-1k"),
    ),
    Benchmark(
        name="oktest",
        about="safe questions with words that sound unsafe",
        source="Shi et al., ACL 2024, github.com/InvokerStark/OverKill, data/OKTest.csv",
        licence="none stated",
        rows=300,
    ),
    _PHTEST(
        name="phtest_harmless",
        about="pseudo-harmful prompts labelled harmless",
        keep=("Harmfulness", "harmless"),
    ),
    _PHTEST(
        name="phtest_controversial",
        about="pseudo-harmful prompts labelled controversial",
        keep=("Harmfulness", "controversial"),
    ),
    Benchmark(
        name="coconot_contrast",
        about="prompts to comply with, close to ones that are not",
        source="Brahman et al., NeurIPS 2024, arXiv 2407.12043",
        licence="ODC-BY",
        rows=379,
        id="id",
        type="category",
        hub=Hub("allenai/coconot", "contrast", "test"),
    ),
    _STL_FILE(name="i_malicious", about="I-MaliciousInstructions", rows=100),
    _STL_FILE(name="i_cona", about="I-CoNa, hateful instructions", rows=178),
    _STL_FILE(name="i_controversial", about="I-Controversial", rows=40),
    _STL_FILE(name="q_harm", about="Q-Harm, questions, some of them mild", rows=100),
    Benchmark(
        name="advbench",
        about="harmful behaviours",
        source="Zou et al., 2023, github.com/llm-attacks/llm-attacks, harmful_behaviors.csv",
        licence="MIT",
        rows=520,
        text=("goal", "prompt"),
        kind="unsafe",
        hub=Hub("walledai/AdvBench"),
    ),
    _JBB(
        name="jailbreakbench",
        about="JBB-Behaviors, harmful",
        kind="unsafe",
        hub=Hub("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
    ),
    _JBB(
        name="jailbreakbench_benign",
        about="JBB-Behaviors, benign",
        hub=Hub("JailbreakBench/JBB-Behaviors", "behaviors", "benign"),
    ),
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
"""Every published benchmark by name; `sources` reads `tiny` and the user's files as well."""
