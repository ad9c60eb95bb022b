"""Refusal triggers: harmless parts of harmful prompts that become associated with refusal.

They are extracted into a file with compliant answers, which `ntkprobe train sft --recipe
refusal_trigger` reads. An extractor is a file of `extractors/`; `extraction` documents its
interface.
"""
