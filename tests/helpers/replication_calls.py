"""`ntkprobe replicate` at toy scale, on the embedded model."""

from ntkprobe import tiny

MODEL = str(tiny.model_path())


def words(data, out, *more):
    common = ["replicate", "--model", MODEL, "--scale", "toy", "--device", "cpu", "--seeds", "0"]
    return [*common, "--data", str(data), "--output-dir", str(out), *more]
