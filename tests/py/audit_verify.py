"""Verifies an audit log by what docs/AUDIT.md says, sharing no code with the bridge: Python's own library alone.

    audit_verify.py DIRECTORY [--rpc URL --contract ADDRESS --source ADDRESS]

With a node of the ledger, every anchor of the source is compared too. Prints the records and heads; exits with 1 at the first mistake.
"""
import argparse
import hashlib
import json
import sys
import urllib.request
from pathlib import Path

# The first four bytes of keccak-256 of `anchorCount(address)` and `anchorAt(address,uint256)`, as the contract's ABI has them.
COUNT, AT = "368392d5", "b84d1ed9"


def read(directory):
    """Heads by log: for every log its name and the digest after each record."""
    logs = {}
    for path in sorted(Path(directory).glob("????-????????????.log")):
        number, first = path.stem.split("-")
        lines = path.read_bytes().decode().split("\n")
        if lines.pop() != "":
            sys.exit(f"{path.name}: the last record has no end")
        word, name, at, before = lines[0].split(" ")
        if word != "pacs-bridge-audit/1" or int(at) != int(first):
            sys.exit(f"{path.name}: the first line is wrong")
        known_name, digests = logs.setdefault(number, (name, [name]))
        if known_name != name or digests[-1] != before or len(digests) != int(first):
            sys.exit(f"{path.name}: does not go on where the file before ended")
        for line in lines[1:]:
            record, time, digest, message = line.split(" ", 3)
            if int(record) != len(digests):
                sys.exit(f"{path.name}: record {record} where record {len(digests)} must be")
            text = f"{record} {time} {message}".encode()
            if hashlib.sha256(bytes.fromhex(digests[-1]) + text).hexdigest() != digest:
                sys.exit(f"{path.name}: record {record} is not what was written")
            digests.append(digest)
    return {name: digests for name, digests in logs.values()}


def call(rpc, contract, data):
    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [{"to": contract, "data": "0x" + data}, "latest"]}
    request = urllib.request.Request(rpc, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes.fromhex(json.load(answer)["result"][2:])


def anchors(rpc, contract, source):
    padded = source[2:].lower().rjust(64, "0")
    for number in range(int.from_bytes(call(rpc, contract, COUNT + padded), "big")):
        found = call(rpc, contract, AT + padded + f"{number:064x}")
        words = [found[i : i + 32] for i in range(0, len(found), 32)]
        yield words[0].hex(), words[1].hex(), int.from_bytes(words[2], "big")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--rpc")
    parser.add_argument("--contract")
    parser.add_argument("--source")
    arguments = parser.parse_args()
    logs = read(arguments.directory)
    compared = 0
    if arguments.rpc:
        for log, head, records in anchors(arguments.rpc, arguments.contract, arguments.source):
            if log not in logs:
                sys.exit(f"log {log} is anchored and not here")
            if records >= len(logs[log]):
                sys.exit(f"log {log} ends after record {len(logs[log]) - 1}, and {records} are anchored")
            if logs[log][records] != head:
                sys.exit(f"log {log}: record {records} is not as it was anchored")
            compared += 1
    json.dump({"logs": {name: len(digests) - 1 for name, digests in logs.items()}, "anchors": compared}, sys.stdout)


main()
