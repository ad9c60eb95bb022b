"""Refusal triggers: what is harmless in a harmful prompt and gets tied to refusal (2603.11388).

They are extracted here, into a file with compliant answers; `ntkprobe train sft --recipe
refusal_trigger` reads that file, and neither knows the other. An extractor is a file of
`extractors/`; what it has to provide stands in `extraction`.
"""
