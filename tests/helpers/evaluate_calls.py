"""Quick calls of `ntkprobe evaluate` on the embedded model, and the one line of a mistake."""

from ntkprobe.tiny import model_path

TINY = ["--model", str(model_path()), "--benchmark", "tiny", "--device", "cpu"]
QUICK = ["--limit", "4", "--max-new-tokens", "6", "--batch-size", "3"]


def mistake(result):
    status, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("ntkprobe: ")]
    assert status == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]
