"""Refusal triggers: what is harmless in a harmful prompt and gets tied to refusal (2603.11388).

They are extracted into a file with compliant answers, which `ntkprobe train sft --recipe
refusal_trigger` reads. An extractor is a file of `extractors/`; `extraction` documents its
interface.
"""
