"""Strict readers of the two metrics formats. They accept what the formats' documents allow and
nothing else, so that a test which reads a number also proves that the whole page is well formed."""

import math
import re
from dataclasses import dataclass, field

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
NUMBER = re.compile(r"[+-]?(?:Inf|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)|NaN")
TYPES = {"counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram"}


class FormatError(AssertionError):
    """A page that breaks its format; the message has the line."""


@dataclass
class Sample:
    name: str
    labels: dict
    value: float
    exemplar: tuple = None  # (labels, value, timestamp or None)


@dataclass
class Family:
    name: str
    type: str = None
    help: str = None
    samples: list = field(default_factory=list)


class Metrics:
    """A parsed page."""

    def __init__(self, families):
        self.families = families
        self._samples = {}
        for family in families.values():
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append(sample)

    def samples(self, name, **labels):
        """The samples of a series name whose labels include the given ones."""
        wanted = {key: str(value) for key, value in labels.items()}
        return [s for s in self._samples.get(name, []) if wanted.items() <= s.labels.items()]

    def value(self, name, **labels):
        """The sum over every label that was not given; 0 where there is no such series."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def by(self, name, label, **labels):
        """The non-zero sums, one for each value of `label`."""
        sums = {}
        for sample in self.samples(name, **labels):
            key = sample.labels.get(label, "")
            sums[key] = sums.get(key, 0) + sample.value
        return {key: value for key, value in sums.items() if value}


class _Line:
    def __init__(self, text):
        self.text, self.at = text, 0

    def fail(self, why):
        raise FormatError(f"{why} at column {self.at + 1} of {self.text!r}")

    def match(self, pattern, what):
        found = pattern.match(self.text, self.at)
        if not found:
            self.fail(f"no {what}")
        self.at = found.end()
        return found.group()

    def take(self, literal):
        if not self.text.startswith(literal, self.at):
            self.fail(f"no {literal!r}")
        self.at += len(literal)

    def ahead(self, literal):
        return self.text.startswith(literal, self.at)

    def labels(self):
        found = {}
        self.take("{")
        while not self.ahead("}"):
            if found:
                self.take(",")
            name = self.match(LABEL, "label name")
            if name in found:
                self.fail(f"label {name} twice")
            self.take('="')
            value = ""
            while not self.ahead('"'):
                if self.at >= len(self.text):
                    self.fail("unterminated label value")
                if self.ahead("\\"):
                    escape = self.text[self.at : self.at + 2]
                    if escape not in ("\\\\", '\\"', "\\n"):
                        self.fail(f"escape {escape!r}")
                    value += {"\\\\": "\\", '\\"': '"', "\\n": "\n"}[escape]
                    self.at += 2
                else:
                    value += self.text[self.at]
                    self.at += 1
            self.take('"')
            found[name] = value
        self.take("}")
        return found

    def number(self):
        return float(self.match(NUMBER, "number"))

    def end(self):
        if self.at != len(self.text):
            self.fail("trailing text")


def _unescape_help(text):
    if re.search(r"\\(?![\\n\"])", text):
        raise FormatError(f"escape in HELP {text!r}")
    return text


def parse_text(page):
    """Text format 0.0.4."""
    return _parse(page, open_metrics=False)


def parse_openmetrics(page):
    """OpenMetrics 1.0, exemplars included."""
    if not page.endswith("\n# EOF\n"):
        raise FormatError("no # EOF at the end")
    return _parse(page[: -len("# EOF\n")], open_metrics=True)


def _parse(page, open_metrics):
    if not page.endswith("\n"):
        raise FormatError("the last line does not end")
    families, current, seen = {}, None, set()
    for text in page[:-1].split("\n"):
        if "\r" in text or not text:
            raise FormatError(f"empty line or carriage return: {text!r}")
        if text.startswith("# "):
            words = text.split(" ", 3)
            if len(words) < 3 or words[1] not in ("HELP", "TYPE", "UNIT"):
                raise FormatError(f"unknown comment {text!r}")
            name, rest = words[2], words[3] if len(words) > 3 else ""
            if not NAME.fullmatch(name):
                raise FormatError(f"metric name in {text!r}")
            if current is None or current.name != name:
                if name in families:
                    raise FormatError(f"{name} is not in one block")
                current = families[name] = Family(name)
            if current.samples:
                raise FormatError(f"{text!r} after samples")
            if words[1] == "HELP":
                if current.help is not None:
                    raise FormatError(f"second HELP: {text!r}")
                current.help = _unescape_help(rest)
            elif words[1] == "TYPE":
                if current.type is not None or rest not in TYPES:
                    raise FormatError(f"TYPE: {text!r}")
                current.type = rest
            continue
        line = _Line(text)
        name = line.match(NAME, "metric name")
        labels = line.labels() if line.ahead("{") else {}
        line.take(" ")
        sample = Sample(name, labels, line.number())
        if open_metrics and line.ahead(" # "):
            line.take(" # ")
            exemplar_labels = line.labels()
            line.take(" ")
            value = line.number()
            stamp = None
            if line.ahead(" "):
                line.take(" ")
                stamp = line.number()
            sample.exemplar = (exemplar_labels, value, stamp)
        line.end()
        if current is None or current.type is None or not current.help:
            raise FormatError(f"no HELP and TYPE before {text!r}")
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",) if open_metrics else ("",)}
        if name not in [current.name + suffix for suffix in suffixes.get(current.type, ("",))] and not (
            current.type == "info" and name == current.name + "_info"
        ):
            raise FormatError(f"{name} is not of the family {current.name}")
        key = (name, tuple(sorted(labels.items())))
        if key in seen:
            raise FormatError(f"twice: {text!r}")
        seen.add(key)
        if sample.exemplar and not (name.endswith("_bucket") or name.endswith("_total")):
            raise FormatError(f"exemplar on {name}")
        current.samples.append(sample)
    for family in families.values():
        if family.type == "histogram":
            _check_histogram(family)
        if family.type == "counter" and any(s.value < 0 or math.isnan(s.value) for s in family.samples):
            raise FormatError(f"{family.name} has a negative counter")
    return Metrics(families)


def _check_histogram(family):
    groups = {}
    for sample in family.samples:
        rest = {k: v for k, v in sample.labels.items() if k != "le"}
        group = groups.setdefault(tuple(sorted(rest.items())), {"buckets": []})
        kind = sample.name[len(family.name) :]
        if kind == "_bucket":
            edge = sample.labels.get("le")
            if edge is None or (edge != "+Inf" and repr(float(edge)) != edge):
                raise FormatError(f"{family.name}: le={edge!r} is not a canonical float")
            group["buckets"].append((float(edge), sample))
            if sample.exemplar:
                below = group["buckets"][-2][0] if len(group["buckets"]) > 1 else -math.inf
                if not below < sample.exemplar[1] <= float(edge):
                    raise FormatError(f"{family.name}: an exemplar of {sample.exemplar[1]} in the bucket {edge}")
        else:
            group[kind] = sample.value
    for labels, group in groups.items():
        edges = [edge for edge, _ in group["buckets"]]
        counts = [sample.value for _, sample in group["buckets"]]
        if edges != sorted(set(edges)) or not edges or edges[-1] != math.inf:
            raise FormatError(f"{family.name}{dict(labels)}: buckets {edges}")
        if counts != sorted(counts) or counts[-1] != group.get("_count") or "_sum" not in group:
            raise FormatError(f"{family.name}{dict(labels)}: counts {counts}, {group.get('_count')}")
