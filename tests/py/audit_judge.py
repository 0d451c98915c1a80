"""Judges audit messages, one XML document a line on standard input: each must be of the grammar of DICOM PS3.15 A.5.1. Prints what they
say, as JSON.

    audit_judge.py < MESSAGES
"""
import base64
import json
import sys
from pathlib import Path

from lxml import etree


def code(element):
    return {"code": element.get("csd-code"), "system": element.get("codeSystemName"), "text": element.get("originalText")}


def told(message):
    event = message.find("EventIdentification")
    why = event.find("EventOutcomeDescription")
    who = [
        {
            "id": one.get("UserID"),
            "alternative": one.get("AlternativeUserID"),
            "asks": one.get("UserIsRequestor") == "true",
            "from": one.get("NetworkAccessPointID"),
            "kind": one.get("NetworkAccessPointTypeCode"),
            "roles": [code(role)["code"] for role in one.findall("RoleIDCode")],
        }
        for one in message.findall("ActiveParticipant")
    ]
    about = []
    for one in message.findall("ParticipantObjectIdentification"):
        query = one.find("ParticipantObjectQuery")
        about.append(
            {
                "id": one.get("ParticipantObjectID"),
                "kind": one.get("ParticipantObjectTypeCode"),
                "role": one.get("ParticipantObjectTypeCodeRole"),
                "type": code(one.find("ParticipantObjectIDTypeCode")),
                "query": query is not None and base64.b64decode(query.text, validate=True).hex(),
                "details": {
                    detail.get("type"): base64.b64decode(detail.get("value"), validate=True).decode()
                    for detail in one.findall("ParticipantObjectDetail")
                },
                "instances": sum(int(found.get("NumberOfInstances")) for found in one.iter("SOPClass")),
            }
        )
    source = message.find("AuditSourceIdentification")
    return {
        "event": code(event.find("EventID")),
        "types": [code(one)["code"] for one in event.findall("EventTypeCode")],
        "action": event.get("EventActionCode"),
        "outcome": event.get("EventOutcomeIndicator"),
        "time": event.get("EventDateTime"),
        "why": None if why is None else why.text,
        "who": who,
        "about": about,
        "source": source.get("AuditSourceID"),
    }


def main():
    grammar = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit_message.rng")))
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    out = []
    for number, line in enumerate(sys.stdin.buffer.read().splitlines(), 1):
        message = etree.fromstring(line, parser)
        if not grammar.validate(message):
            sys.exit(f"message {number} is not of the grammar: {grammar.error_log}\n{line.decode()}")
        out.append(told(message))
    json.dump(out, sys.stdout)


main()
