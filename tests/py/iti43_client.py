"""A consumer of signed ITI-43 and RAD-69 retrieval that shares no code with the bridge: lxml, libxmlsec1 and OpenSSL.

Signs a RetrieveDocumentSet request (docs: profile S1, WS-Security X.509 token), sends it as MTOM over HTTPS, takes the answer apart and prints
what it says as one JSON object: HTTP status, fault or registry response, and for each document its length, SHA-256 and file.

  iti43_client.py --url https://host/iti43 --key KEYFILE --repository R --document D [--document E ...]

With `--instance STUDY/SERIES/INSTANCE` in place of documents, it sends a RetrieveImagingDocumentSet request for these UIDs.

`--write FILE` writes the request instead of sending it, Content-Type first; `--read FILE` reads such an answer instead of a request being made.
"""

import argparse
import base64
import datetime
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import ssl
import sys
import urllib.parse
import uuid

import xmlsec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from lxml import etree

NS = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "s11": "http://schemas.xmlsoap.org/soap/envelope/",
    "wsa": "http://www.w3.org/2005/08/addressing",
    "wsse": "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd",
    "wsu": "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd",
    "ds": "http://www.w3.org/2000/09/xmldsig#",
    "dsig11": "http://www.w3.org/2009/xmldsig11#",
    "xds": "urn:ihe:iti:xds-b:2007",
    "xdsi": "urn:ihe:rad:xdsi-b:2009",
    "rs": "urn:oasis:names:tc:ebxml-regrep:xsd:rs:3.0",
    "xop": "http://www.w3.org/2004/08/xop/include",
}
X509V3 = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509v3"
BASE64 = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary"
ACTION = "urn:ihe:iti:2007:RetrieveDocumentSet"
IMAGING_ACTION = "urn:ihe:rad:2009:RetrieveImagingDocumentSet"
CURVES = {"secp256k1": (ec.SECP256K1(), "urn:oid:1.3.132.0.10"), "p256": (ec.SECP256R1(), "urn:oid:1.2.840.10045.3.1.7")}


def name(text):
    prefix, local = text.split(":")
    return "{%s}%s" % (NS[prefix], local)


def element(parent, tag, text=None, identifier=None, **attributes):
    made = etree.SubElement(parent, name(tag), **attributes)
    made.text = text
    if identifier:
        made.set(name("wsu:Id"), identifier)
    return made


def private_key(arguments):
    secret = pathlib.Path(arguments.key).read_text().strip().removeprefix("0x")
    if secret.startswith("-----BEGIN"):
        key = serialization.load_pem_private_key(secret.encode(), None)
        arguments.curve = next(curve for curve, (kind, _) in CURVES.items() if kind.name == key.curve.name)
        return key
    return ec.derive_private_key(int(secret, 16), CURVES[arguments.curve][0])


def certificate(key):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "iti43 client")])
    begin = datetime.datetime(2020, 1, 1)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), begin, begin.replace(year=2049))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def instant(now, seconds):
    return (now + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def envelope(arguments, message_id, token):
    prefixes = ("s", "wsa", "wsse", "wsu", "xds") + (("xdsi",) if arguments.instance else ())
    root = etree.Element(name("s:Envelope"), nsmap={prefix: NS[prefix] for prefix in prefixes})
    header = element(root, "s:Header")
    must = {name("s:mustUnderstand"): "true"}
    element(header, "wsa:Action", IMAGING_ACTION if arguments.instance else ACTION, "id-action", **must)
    element(header, "wsa:MessageID", message_id, "id-message")
    element(header, "wsa:To", arguments.to or arguments.url, "id-to")
    security = element(header, "wsse:Security", **must)
    now = datetime.datetime.fromtimestamp(arguments.now, datetime.timezone.utc) if arguments.now else datetime.datetime.now(datetime.timezone.utc)
    timestamp = element(security, "wsu:Timestamp", identifier="id-time")
    element(timestamp, "wsu:Created", instant(now, 0))
    element(timestamp, "wsu:Expires", instant(now, 300))
    if arguments.token in ("inline", "part"):
        text = base64.encodebytes(token).decode()
        element(security, "wsse:BinarySecurityToken", text, "id-token", ValueType=X509V3, EncodingType=BASE64)
    body = element(root, "s:Body", identifier="id-body")
    if arguments.instance:
        imaging_request(arguments, body)
    else:
        request = element(body, "xds:RetrieveDocumentSetRequest")
        for document in arguments.document:
            document_request(arguments, request, document)
    return root, security


def document_request(arguments, parent, document):
    entry = element(parent, "xds:DocumentRequest")
    if arguments.home:
        element(entry, "xds:HomeCommunityId", arguments.home)
    element(entry, "xds:RepositoryUniqueId", arguments.repository)
    element(entry, "xds:DocumentUniqueId", document)


def imaging_request(arguments, body):
    """RAD TF-2 4.69.5: studies, series in them, instances in these, and the transfer syntaxes that the consumer takes."""
    request = element(body, "xdsi:RetrieveImagingDocumentSetRequest")
    named = [instance.split("/") for instance in arguments.instance]
    for study, of_study in itertools.groupby(named, key=lambda entry: entry[0]):
        study = element(request, "xdsi:StudyRequest", studyInstanceUID=study)
        for series, of_series in itertools.groupby(of_study, key=lambda entry: entry[1]):
            series = element(study, "xdsi:SeriesRequest", seriesInstanceUID=series)
            for _, _, instance in of_series:
                document_request(arguments, series, instance)
    syntaxes = element(request, "xdsi:TransferSyntaxUIDList")
    for syntax in arguments.transfer_syntax or ["1.2.840.10008.1.2.1"]:
        element(syntaxes, "xdsi:TransferSyntaxUID", syntax)


def key_info(arguments, signature, key):
    info = element(signature, "ds:KeyInfo")
    public = key.public_key()
    if arguments.token in ("inline", "part"):
        reference = element(info, "wsse:SecurityTokenReference")
        element(reference, "wsse:Reference", URI="#id-token", ValueType=X509V3)
    elif arguments.token == "der":
        spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        element(info, "dsig11:DEREncodedKeyValue", base64.b64encode(spki).decode())
    else:
        value = element(element(info, "ds:KeyValue"), "dsig11:ECKeyValue")
        element(value, "dsig11:NamedCurve", URI=CURVES[arguments.curve][1])
        point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        element(value, "dsig11:PublicKey", base64.b64encode(point).decode())


def sign(arguments, root, security, key):
    signature = xmlsec.template.create(root, xmlsec.Transform.EXCL_C14N, xmlsec.Transform.ECDSA_SHA256, ns="ds")
    security.append(signature)
    for identifier in ("id-body", "id-time", "id-action", "id-message", "id-to"):
        reference = xmlsec.template.add_reference(signature, xmlsec.Transform.SHA256, uri="#" + identifier)
        transform = xmlsec.template.add_transform(reference, xmlsec.Transform.EXCL_C14N)
        # As WSS4J does, which always writes a list.
        xmlsec.template.transform_add_c14n_inclusive_namespaces(transform, ["wsa", "wsse", "xds"])
    context = xmlsec.SignatureContext()
    for node in root.iter("*"):
        if name("wsu:Id") in node.attrib:
            context.register_id(node, "Id", NS["wsu"])
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    context.key = xmlsec.Key.from_memory(pem, xmlsec.KeyFormat.PEM)
    key_info(arguments, signature, key)
    context.sign(signature)


def packed(arguments, root, token):
    """The message as MTOM; the token becomes a part after signing, because XOP only changes how the same infoset is written."""
    boundary = "uuid:" + str(uuid.uuid4())
    parts = []
    if arguments.token == "part":
        holder = root.find(".//" + name("wsse:BinarySecurityToken"))
        holder.text = None
        element(holder, "xop:Include", href="cid:token%40client")
        parts.append(part(boundary, "application/ciphervalue", "token@client", token))
    xop = 'application/xop+xml; charset=UTF-8; type="application/soap+xml"'
    document = etree.tostring(root, xml_declaration=True, encoding="UTF-8")
    parts.insert(0, part(boundary, xop, "root@client", document))
    body = b"".join(parts) + f"\r\n--{boundary}--".encode()
    kind = f'multipart/related; type="application/xop+xml"; boundary="{boundary}"; start="<root@client>"; start-info="application/soap+xml"'
    return kind, body


def part(boundary, kind, identifier, content):
    head = f"\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: binary\r\nContent-ID: <{identifier}>\r\n\r\n"
    return head.encode() + content


def send(arguments, kind, body):
    url = urllib.parse.urlsplit(arguments.url)
    context = ssl.create_default_context(cafile=arguments.ca)
    if arguments.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if arguments.cert:
        context.load_cert_chain(arguments.cert)
    if arguments.tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=60)
    connection.request("POST", url.path or "/", body, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type", ""), answer.read()


def parameter(kind, wanted):
    for field in kind.split(";")[1:]:
        key, _, value = field.strip().partition("=")
        if key.lower() == wanted:
            return value.strip('"')
    raise ValueError(f"no {wanted} in {kind}")


def parts_of(kind, body):
    """The parts by Content-ID; the root part has the empty id."""
    delimiter = b"\r\n--" + parameter(kind, "boundary").encode()
    pieces = (b"\r\n" + body).split(delimiter)
    if pieces[0].strip() or not pieces[-1].startswith(b"--") or len(pieces) < 3:
        raise ValueError("not a multipart message")
    found = {}
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n") if line)
        identifier = {k.lower(): v for k, v in fields.items()}["content-id"].strip("<>")
        found["" if not found else identifier] = content
    return found


def text(node, path):
    found = node.find("/".join(name(step) for step in path.split("/")))
    return None if found is None else "".join(found.itertext()).strip()


def read_fault(root):
    fault = root.find(".//" + name("s:Fault"))
    if fault is not None:
        return {
            "code": text(fault, "s:Code/s:Value"),
            "subcode": text(fault, "s:Code/s:Subcode/s:Value"),
            "reason": text(fault, "s:Reason/s:Text"),
        }
    old = root.find(".//" + name("s11:Fault"))
    return {"code": old.findtext("faultcode"), "subcode": None, "reason": old.findtext("faultstring")}


def read_response(arguments, root, parts, message_id):
    registry = root.find(".//" + name("rs:RegistryResponse"))
    documents = []
    for response in root.iter(name("xds:DocumentResponse")):
        href = response.find(name("xds:Document") + "/" + name("xop:Include")).get("href")
        content = parts[urllib.parse.unquote(href.removeprefix("cid:"))]
        entry = {
            "repository": text(response, "xds:RepositoryUniqueId"),
            "document": text(response, "xds:DocumentUniqueId"),
            "mime_type": text(response, "xds:mimeType"),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if arguments.save:
            file = os.path.join(arguments.save, f"{len(documents) + 1}.bin")
            pathlib.Path(file).write_bytes(content)
            entry["file"] = file
        documents.append(entry)
    return {
        "status": registry.get("status"),
        "relates": text(root, "s:Header/wsa:RelatesTo") == message_id,
        "action": text(root, "s:Header/wsa:Action"),
        "errors": [
            {key: error.get(key) for key in ("errorCode", "codeContext", "severity", "location")}
            for error in root.iter(name("rs:RegistryError"))
        ],
        "documents": documents,
    }


def read(arguments, status, kind, body, message_id):
    said = {"http_status": status, "content_type": kind, "message_id": message_id}
    essence = kind.split(";")[0].strip().lower()
    if essence == "multipart/related":
        parts = parts_of(kind, body)
        said["response"] = read_response(arguments, etree.fromstring(parts[""]), parts, message_id)
    elif essence in ("application/soap+xml", "text/xml"):
        said["fault"] = read_fault(etree.fromstring(body))
    else:
        said["text"] = body.decode(errors="replace")
    return said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="where to send the request")
    parser.add_argument("--to", help="wsa:To, when it is not the URL")
    parser.add_argument("--key", help="file with the private key: 64 hexadecimal digits, or PEM, which says its curve itself")
    parser.add_argument("--curve", choices=sorted(CURVES), default="secp256k1", help="of a key in hexadecimal digits")
    parser.add_argument("--token", choices=["part", "inline", "named-curve", "der"], default="part", help="how the key is sent")
    parser.add_argument("--repository", help="RepositoryUniqueId")
    parser.add_argument("--document", action="append", default=[], help="DocumentUniqueId; may be repeated")
    parser.add_argument("--instance", action="append", default=[], help="STUDY/SERIES/INSTANCE of RAD-69; may be repeated")
    parser.add_argument("--transfer-syntax", action="append", help="a transfer syntax that is taken; Explicit VR Little Endian alone when absent")
    parser.add_argument("--home", help="HomeCommunityId")
    parser.add_argument("--message-id", help="wsa:MessageID; a new one when absent")
    parser.add_argument("--now", type=float, help="seconds since 1970 to sign for, instead of the clock")
    parser.add_argument("--alter", nargs=2, metavar=("FROM", "TO"), help="replaces a text in the message after it is signed")
    parser.add_argument("--ca", help="file with the certificate of the server or its authority")
    parser.add_argument("--insecure", action="store_true", help="takes any certificate of the server")
    parser.add_argument("--cert", help="file with a certificate and its key to show to the server")
    parser.add_argument("--tls12", action="store_true", help="speaks TLS 1.2 at most")
    parser.add_argument("--save", help="directory for the documents")
    parser.add_argument("--write", help="writes the request into a file instead of sending it")
    parser.add_argument("--read", help="reads an answer, Content-Type first, from a file instead of making a request")
    arguments = parser.parse_args()

    message_id = arguments.message_id or "urn:uuid:" + str(uuid.uuid4())
    if arguments.read:
        kind, _, body = pathlib.Path(arguments.read).read_bytes().partition(b"\n")
        print(json.dumps(read(arguments, 200, kind.decode(), body, message_id)))
        return
    key = private_key(arguments)
    token = certificate(key)
    root, security = envelope(arguments, message_id, token)
    sign(arguments, root, security, key)
    kind, body = packed(arguments, root, token)
    if arguments.alter:
        body = body.replace(*(text.encode() for text in arguments.alter))
    if arguments.write:
        pathlib.Path(arguments.write).write_bytes(kind.encode() + b"\n" + body)
        return
    print(json.dumps(read(arguments, *send(arguments, kind, body), message_id)))


if __name__ == "__main__":
    sys.exit(main())
