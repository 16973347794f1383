"""The comparison of bitsandbytes' versions: its record has the form that lesson 05 reads, and is right about the installed version."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import compare_versions
from tools.compare_versions import ALL, CASES, OUTCOMES, VERSIONS, VERSIONS_FILE, run_case, run_cases

RECORD = json.loads(VERSIONS_FILE.read_text(encoding="utf-8"))
AS_RECORDED = RECORD["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()


def key(result: dict[str, Any]) -> tuple[str, str, bool]:
    return result["case"], result["codebook"], result["double_quant"]


def test_the_record_says_what_was_compared_where_and_with_what() -> None:
    assert list(RECORD["bitsandbytes"]) == list(VERSIONS)
    assert RECORD["command"] == "python -m tools.compare_versions"
    assert set(RECORD["machine"]) == {"processor", "cpu_capability", "system", "device"}
    assert set(RECORD["versions"]) == {"python", "torch"} and RECORD["date"] >= "2026-11-21"


@pytest.mark.parametrize("release", VERSIONS)
def test_each_version_has_each_case_once_and_its_counts_fit_the_outcome(release: str) -> None:
    results = RECORD["bitsandbytes"][release]
    assert [key(result) for result in results] == ALL
    for result in results:
        assert result["outcome"] in OUTCOMES
        if result["outcome"] in ("error", "crash"):
            assert result["error"] and "bytes" not in result
            continue
        assert 0 <= sum(result["bytes_different"].values()) <= result["bytes"]
        assert 0 <= result["weights_different"] <= result["weights"]
        assert (result["outcome"] == "other bytes") == bool(result["bytes_different"])
        if not result["bytes_different"]:
            assert (result["outcome"] == "other weights") == bool(result["weights_different"])


@pytest.mark.parametrize("case", CASES)
def test_the_installed_version_does_what_the_record_says(case: str) -> None:
    """0.50.0, 0.50.1 and 0.50.2 are alike. Only the last case depends on the CPU (see "wrong scales" in tests/test_quantize.py)."""
    minor = version("bitsandbytes").rpartition(".")[0]
    [release] = [release for release in VERSIONS if release.rpartition(".")[0] == minor]
    recorded = [result for result in RECORD["bitsandbytes"][release] if result["case"] == case]
    with torch.compiler.set_stance("force_eager"):
        fresh = [run_case(*key(result)) for result in recorded]
    if AS_RECORDED or case != "128 x 352":
        assert fresh == recorded
    assert all(result["outcome"] == ("other weights" if case == "128 x 352" else "same") for result in recorded)


@pytest.mark.skipif(sys.platform == "win32", reason="a process that is killed has no signal there")
def test_a_version_that_kills_the_process_is_recorded_and_the_cases_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bitsandbytes that refuses, and that ends the process in two cases, one of them the last."""
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "bitsandbytes" / "functional.py").write_text(
        "import os, signal\n"
        "def quantize_4bit(weight, quant_type, compress_statistics, blocksize):\n"
        "    if weight.shape in ((128, 352), (129,)) and quant_type == 'fp4' and compress_statistics:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    raise NotImplementedError('not here')\n",
        encoding="utf-8",
    )
    results = run_cases(tmp_path)
    assert [key(result) for result in results] == ALL
    crashed = {("128 x 352", "fp4", True), ("odd count", "fp4", True)}
    for result in results:
        expected = ("crash", "SIGSEGV") if key(result) in crashed else ("error", "NotImplementedError: not here")
        assert (result["outcome"], result["error"]) == expected


def test_a_failure_of_the_cases_themselves_is_told(tmp_path: Path) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise ImportError('broken')", encoding="utf-8")
    with pytest.raises(SystemExit, match="ended early(.|\n)*broken"):
        run_cases(tmp_path)


def test_other_numbers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """If bitsandbytes read back something else, or stored something else, the case would say so."""
    dequantize, quantize = compare_versions.bnb.dequantize_4bit, compare_versions.bnb.quantize_4bit

    def one_more(packed: torch.Tensor, state: Any) -> torch.Tensor:
        read_back = dequantize(packed, state)
        read_back[0, 0] += 1
        return read_back

    def another_scale(*args: Any, **options: Any) -> tuple[torch.Tensor, Any]:
        packed, state = quantize(*args, **options)
        state.absmax[0] *= 2
        return packed, state

    monkeypatch.setattr(compare_versions.bnb, "dequantize_4bit", one_more)
    result = run_case("full blocks", "nf4", False)
    assert (result["outcome"], result["weights_different"], result["bytes_different"]) == ("other weights", 1, {})
    monkeypatch.setattr(compare_versions.bnb, "quantize_4bit", another_scale)
    result = run_case("full blocks", "nf4", False)
    assert result["outcome"] == "other bytes" and set(result["bytes_different"]) == {"scales"}


def test_one_version_is_renewed_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    monkeypatch.setattr(compare_versions, "VERSIONS_FILE", file)
    monkeypatch.setattr(compare_versions, "ROOT", tmp_path)
    monkeypatch.setattr(compare_versions, "install", Path)
    monkeypatch.setattr(compare_versions, "run_cases", lambda folder: [{"outcome": "same", "of": str(folder)}])
    compare_versions.main([])
    record = json.loads(file.read_text(encoding="utf-8"))
    record["bitsandbytes"] = {VERSIONS[-1]: ["as before"], VERSIONS[1]: ["older"]}
    file.write_text(json.dumps(record), encoding="utf-8")
    compare_versions.main([VERSIONS[1]])
    renewed = json.loads(file.read_text(encoding="utf-8"))["bitsandbytes"]
    assert list(renewed) == [VERSIONS[1], VERSIONS[-1]]
    assert renewed[VERSIONS[1]][0]["of"] == VERSIONS[1] and renewed[VERSIONS[-1]] == ["as before"]
    record["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(SystemExit, match="other versions: run all releases"):
        compare_versions.main([VERSIONS[1]])
    with pytest.raises(SystemExit):
        compare_versions.main(["0.1"])
