#!/usr/bin/env python3
"""Checks an export of a meter-gateway ledger without the gateway: every hash, every link, every signature.

    python3 verify.py --public-key KEY.pem [--public-key OLDER.pem] EXPORT.jsonl

Needs the standard library and `cryptography`. Written from docs/verify.md, not from the gateway's code. The export may
begin anywhere in the chain. Exit 0: everything checks. Exit 1: the place of the first fault is on standard error.
"""

import argparse
import base64
import binascii
import collections
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_LINE = 64 * 1024
MAX_INTEGER = 2**53 - 1
WINDOW = 65_536  # hashes remembered to compare a signed head with the chain
UNSIGNED = ("signature", "seq", "prev", "hash", "recorded_at")
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


class Fault(Exception):
    """What is wrong: a word for programs and a sentence for people."""

    def __init__(self, kind, detail):
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def canonical(value):
    """RFC 8785, for what a record may hold: no floats, no integers that a double cannot keep."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError("integer beyond 2^53 - 1")
        return str(value)
    if isinstance(value, str):
        return string(value)
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(string(name) + ":" + canonical(value[name]) for name in names) + "}"
    raise ValueError("a float")


def string(text):
    out = []
    for char in text:
        if char in ESCAPES:
            out.append(ESCAPES[char])
        elif char < " ":
            out.append("\\u%04x" % ord(char))
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def refuse(text):
    raise ValueError(f"{text} is not an exact number")


def without(record, names):
    return canonical({name: value for name, value in record.items() if name not in names}).encode()


def parse(line):
    """One line as a record that proves itself."""
    if len(line) > MAX_LINE:
        raise Fault("record", f"longer than {MAX_LINE} bytes")
    try:
        record = json.loads(line.decode("utf-8"), parse_float=refuse, parse_constant=refuse)
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        if canonical(record).encode("utf-8") != line:
            raise ValueError("not canonical JSON")
    except (ValueError, RecursionError) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise Fault("record", str(error)) from None
    claimed = record.get("hash")
    computed = hashlib.sha256(without(record, ("hash",))).hexdigest()
    if claimed != computed:
        raise Fault("record", f"hash is {claimed}, its content has {computed}")
    seq = record.get("seq")
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1:
        raise Fault("record", "no seq")
    if not isinstance(record.get("prev"), str):
        raise Fault("record", "no prev")
    return record


def key_id(key):
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def text_of(record, name):
    value = record.get(name)
    return value if isinstance(value, str) else ""


class Verifier:
    def __init__(self, keys):
        self.keys = {key_id(key): key for key in keys}
        self.hashes = collections.OrderedDict()  # seq -> hash, the latest WINDOW of them
        self.first = 0
        self.last = None  # (seq, hash)
        self.ledger = None
        self.manifests = self.rotations = self.records = 0
        self.proved = None  # (last_seq, date, seq of the manifest)

    def remember(self, seq, value):
        self.hashes[seq] = value
        if len(self.hashes) > WINDOW:
            self.hashes.popitem(last=False)

    def line(self, line):
        record = parse(line)
        seq = record["seq"]
        if self.last is None:
            self.first = seq
            self.remember(seq - 1, record["prev"])
        elif seq != self.last[0] + 1:
            raise Fault("order", f"found seq {seq}, expected seq {self.last[0] + 1}")
        elif record["prev"] != self.last[1]:
            raise Fault("link", f"names {record['prev']} before it; the record before has {self.last[1]}")
        if record.get("type") == "manifest":
            self.signed(record, "key_id")
            self.manifests += 1
            if record["last_seq"] >= self.first:
                self.proved = (record["last_seq"], text_of(record, "date"), seq)
        elif record.get("type") == "change" and record.get("change") == "key_rotated":
            self.signed(record, "old_key_id")
            self.rotate(record)
        self.remember(seq, record["hash"])
        self.last = (seq, record["hash"])
        self.records += 1

    def signed(self, record, id_field):
        name = text_of(record, id_field)
        key = self.keys.get(name)
        if key is None:
            raise Fault("key", f"signed by key {name!r}, which is not trusted here")
        try:
            signature = base64.b64decode(text_of(record, "signature"), validate=True)
            key.verify(signature, without(record, UNSIGNED))
        except (InvalidSignature, binascii.Error, ValueError):
            raise Fault("signature", f"the signature of key {name} does not verify") from None
        ledger = text_of(record, "ledger")
        if self.ledger is None:
            self.ledger = ledger
        if ledger != self.ledger:
            raise Fault("ledger", f"of ledger {ledger!r}; those before are of {self.ledger!r}")
        last_seq = record.get("last_seq")
        if not isinstance(last_seq, int) or isinstance(last_seq, bool) or not 0 <= last_seq < record["seq"]:
            raise Fault("head", "last_seq is not before the record itself")
        if last_seq + 1 < self.first:
            return  # it lies before the export and cannot be compared
        found = self.hashes.get(last_seq)
        if found is None:
            raise Fault("head", f"seq {last_seq} lies more than {WINDOW} records back")
        if found != record.get("head"):
            raise Fault("head", f"it was signed over {record.get('head')} at seq {last_seq}; the chain has {found}")

    def rotate(self, record):
        try:
            der = base64.b64decode(text_of(record, "new_public_key"), validate=True)
            key = serialization.load_der_public_key(der)
        except (binascii.Error, ValueError):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise Fault("key", "new_public_key is not an Ed25519 public key")
        if key_id(key) != record.get("new_key_id"):
            raise Fault("key", "new_key_id is not the id of new_public_key")
        del self.keys[record["old_key_id"]]
        self.keys[key_id(key)] = key
        self.rotations += 1


def load_key(path):
    with open(path, "rb") as file:
        key = serialization.load_pem_public_key(file.read())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 public key")
    return key


def main():
    parser = argparse.ArgumentParser(description="Checks an export of a meter-gateway ledger.")
    parser.add_argument("--public-key", action="append", required=True, metavar="KEY.pem")
    parser.add_argument("export", metavar="EXPORT.jsonl")
    asked = parser.parse_args()
    keys = []
    for path in asked.public_key:
        try:
            keys.append(load_key(path))
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    verifier = Verifier(keys)
    try:
        with open(asked.export, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 2):
                number += 1
                try:
                    verifier.line(line.removesuffix(b"\n"))
                except Fault as fault:
                    seq = verifier.last[0] + 1 if verifier.last else 0
                    if verifier.last is None and verifier.first:
                        seq = verifier.first
                    print(f"{asked.export}: line {number}, seq {seq}: {fault.kind}: {fault.detail}", file=sys.stderr)
                    return 1
    except OSError as error:
        print(f"{asked.export}: {error}", file=sys.stderr)
        return 1
    if verifier.records == 0:
        print(f"{asked.export}: no records", file=sys.stderr)
        return 1
    print(f"records  {verifier.records} (seq {verifier.first} to {verifier.last[0]}), every hash and link checks")
    print(f"signed   {verifier.manifests} manifest record(s), {verifier.rotations} key rotation(s)")
    if verifier.proved:
        last_seq, date, seq = verifier.proved
        print(f"proved   seq {verifier.first} to {last_seq}, by the manifest of {date} at seq {seq}")
    else:
        print("proved   nothing: no manifest covers these records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
