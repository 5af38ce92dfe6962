"""Every Triton kernel compiled for GPUs that are not here; ``doctor --compile`` prints the table.

In a process of its own, which is this file run as a script: the interpreter of other tests changes
what ``triton.jit`` returns. All chips at one size; ``doctor --compile`` has all sizes.
"""

import json
import sys
from dataclasses import asdict

import interpreted
import pytest
from command_line import run

from refine_kernels import compiling

pytestmark = pytest.mark.slow

CHIPS = ("sm_80", "sm_90", "sm_100")
# No decay is a part of the first; the others are the largest of their kind.
CASES = (
    *("delta_rule, decay, 128", "rms_norm, 8192", "gated_norm, 128", "swiglu", "short_conv"),
    *("delta_rule_shared, 8 forks of 5 tokens, 128", "token_stats, 32000"),
    "lact_update",
)
KERNELS = {
    *("prepare", "recur", "outputs"),
    *("written_back", "recur_back", "pairs_back", "queries_keys_back"),
    *("normalize", "normalize_back", "multiply", "multiply_back"),
    *(
        "convolve",
        "convolve_back",
        "convolve_three",
        "convolve_three_back",
        "column_sums",
        "statistics",
        "logits_back",
    ),
    *("fast_hidden", "fast_hidden_back", "fast_written", "fast_written_back"),
    *("forks", "forks_states_back", "forks_rows_back"),
}
PIPELINED = {"recur", "recur_back"}


def test_kernels_fit_the_chips():
    pytest.importorskip("triton")
    found = interpreted.run(__file__, interpret=False)
    rows = found["rows"]
    for chip in CHIPS:
        here = [row for row in rows if row["chip"] == chip]
        assert {row["kernel"] for row in here} == KERNELS
        assert len(here) >= 35
        for row in here:
            assert row["problems"] == [], row
            assert row["shared_bytes"] <= compiling.SHARED_LIMITS[chip]
            assert (row["tensor_core"] > 0) == row["op"].startswith("delta_rule")
            if row["kernel"] in PIPELINED:
                assert row["async_copies"] >= 20, row
    # Too large for any chip, and too large for the registers: both are seen.
    assert any("of shared memory" in problem for problem in found["too large"]), found["too large"]
    assert any("bytes spilled" in problem for problem in found["too large"])


def test_a_recorded_call_starts_no_more_kernels_than_written_down():
    """Three forward, six backward; positions that are not given beforehand three more forward."""
    found = interpreted.run(__file__, "count", interpret=False)
    rows = found.pop("row by row")
    forks = [rows.pop(name) for name in list(rows) if name.startswith("delta_rule_shared")]
    assert forks == [3] * 5  # one forward, two backward, of one fork and of eight
    # 4,096 tokens: one each way for each block of 2,048 tokens, or of 384.
    assert rows.pop("token_stats, 32000 words") == 2 * 2
    assert rows.pop("token_stats, 151936 words") == 2 * 11
    assert found == {"forward": 3, "backward": 6, "given": 0, "coarse": 3, "coarse backward": 6}
    # One forward and two backward; SwiGLU has no weights, LaCT four functions.
    assert len(rows) >= 9
    for name, count in rows.items():
        assert count == {"swiglu": 2, "lact_update": 4}.get(name.split(",")[0], 3), name


def test_doctor_refuses_what_it_does_not_know():
    outcome = run("doctor", "--compile", "sm_70")
    assert outcome.code == 2
    assert "no chip 'sm_70'" in outcome.stderr
    assert "sm_90" in outcome.stderr


@pytest.mark.parametrize("problems", [(), ("9 bytes spilled, 0 expected",)])
def test_doctor_prints_the_table(monkeypatch, problems):
    row = compiling.Compiled(
        "delta_rule", "recur", "C=64", "sm_90", 96, 0, 82436, 16, 42, 1.0, problems
    )
    monkeypatch.setattr(compiling, "compile_all", lambda chip: iter([row]))
    outcome = run("doctor", "--compile", "sm_90")
    assert outcome.code == (1 if problems else 0)
    assert "82,436" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    assert all(problem in outcome.stdout for problem in problems)
    assert "1 kernels compiled for sm_90" in outcome.stdout
    as_json = run("doctor", "--compile", "sm_90", "--json")
    assert as_json.code == outcome.code
    assert json.loads(as_json.stdout)[0]["registers"] == 96


def compiled():
    import torch

    from refine_kernels import kernel_cases
    from refine_kernels.delta_rule import kernel_op
    from refine_kernels.launching import recorded

    named = [(chip, case) for chip in CHIPS for case in CASES]
    rows = [asdict(row) for pair in named for row in compiling.compile_all(*pair)]
    kernel_op._PLANS["recur_back"] = (128, 4, 4)
    with recorded() as launches:
        kernel_cases.CASES["delta_rule, decay, 128 x 128"](torch.device("meta"))
    bad = next(x for x in launches if x.kernel.fn.__name__ == "recur_back")
    return {
        "rows": rows,
        "too large": compiling.compile_launch("delta_rule", bad, "sm_90").problems,
    }


def counted():
    import torch

    from refine_kernels.delta_rule.kernel_trail import delta_rule_triton
    from refine_kernels.kernel_cases import CASES
    from refine_kernels.launching import recorded

    def draw(*shape):
        return torch.empty(1, 1024, 4, *shape, device="meta", requires_grad=True)

    positions = torch.empty(1, 8, dtype=torch.int64, device="meta")
    inputs = (draw(64), draw(64), draw(64), draw(), None, torch.empty(1, 4, 64, 64, device="meta"))
    counts = {}
    for keep in (False, True):
        with recorded() as launches:
            output, _, trail = delta_rule_triton(*inputs, 1.0, True, keep, 64, positions)
            counts["forward"] = len(launches)
            states = trail.at(positions)
            counts["coarse" if keep else "given"] = len(launches) - counts["forward"]
            before = len(launches)
            (output.sum() + states.sum()).backward()
            counts["coarse backward" if keep else "backward"] = len(launches) - before
    counts["row by row"] = {}
    for name, case in CASES.items():
        if name.startswith("delta_rule, "):
            continue
        with recorded() as launches:
            case(torch.device("meta"))
        counts["row by row"][name] = len(launches)
    return counts


if __name__ == "__main__":
    print(json.dumps(counted() if sys.argv[1:] else compiled()))  # noqa: T201
