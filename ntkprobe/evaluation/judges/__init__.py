"""Judges of answers, one file each; the folder is the registry.

A judge is a frozen dataclass of settings, called like its module (`Llm` in `llm.py`), and follows
`ntkprobe.evaluation.verdicts.Judge`.
"""
