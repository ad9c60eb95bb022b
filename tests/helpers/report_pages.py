"""The report's page, read without a browser: its elements, and the numbers that it holds."""

import base64
import json
import zlib
from html.parser import HTMLParser

import numpy as np

from ntkprobe.report.packing import MISSING_INT16

TYPES = {"f4": "<f4", "i4": "<i4", "i2": "<i2", "u1": "u1"}


class Elements(HTMLParser):
    """The elements of a page: `[tag, attributes, text]`, as a browser would part them."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data


def unpacked(html):
    """Return the tree that a page holds, its arrays as numbers; the page's own way is not used."""
    texts = {e[1]["id"]: e[2] for e in Elements(html).found if "id" in e[1] and e[0] == "script"}

    def array(told):
        raw = zlib.decompress(base64.b64decode(texts[told["block"]]))
        kind = np.dtype(TYPES[told["type"]])
        by_place = np.frombuffer(raw, np.uint8).reshape(kind.itemsize, -1)
        values = np.frombuffer(by_place.T.tobytes(), kind).reshape(told["shape"])
        if told["type"] != "i2":
            return values
        return np.where(values == MISSING_INT16, np.nan, values * told["scale"])

    def walked(value):
        if isinstance(value, list):
            return [walked(item) for item in value]
        if not isinstance(value, dict):
            return value
        return array(value) if "block" in value else {k: walked(v) for k, v in value.items()}

    return walked(json.loads(texts["index"]))
