"""Other people's XML signatures as a judge: lxml (libxml2) and xmlsec (libxmlsec1, OpenSSL).

Reads one command a line, answers with one line. Arguments are hexadecimal, so that nothing needs quoting:

  c14n DOCUMENT PREFIXES             exclusive canonical form of the whole document; "refused" when it is not XML, and
                                     "namespace" when a namespace name is not what libxml2 takes for a URI
  digests DOCUMENT ID PREFIXES       SHA-256 that libxmlsec1 computes for the element with that wsu:Id
  verify DOCUMENT KEY                "valid" or "invalid"; KEY is a SubjectPublicKeyInfo in DER
  sign DOCUMENT KEY PREFIXES         the document with its template ds:Signature filled in; KEY is a PKCS #8 key in DER
  certificate DER                    subject of a certificate whose signature by its own key was checked
"""

import base64
import sys

import xmlsec
from cryptography import x509
from lxml import etree

DS = "http://www.w3.org/2000/09/xmldsig#"
WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"


def parsed(document):
    parser = etree.XMLParser(resolve_entities=False, no_network=True, strip_cdata=False)
    return etree.fromstring(document, parser)


def register_ids(context, root):
    for node in root.iter("*"):
        if "{%s}Id" % WSU in node.attrib:
            context.register_id(node, "Id", WSU)


def c14n(document, prefixes):
    # libxml2 calls the default namespace "", not "#default".
    listed = [p.replace("#default", "") for p in prefixes.decode().split()] or None
    try:
        tree = parsed(document).getroottree()
        form = etree.tostring(tree, method="c14n", exclusive=True, with_comments=False, inclusive_ns_prefixes=listed)
    except etree.XMLSyntaxError as error:
        return "namespace" if error.code == etree.ErrorTypes.WAR_NS_URI else "refused"
    except etree.C14NError:
        return "namespace"
    return form.hex()


def digests(document, identifier, prefixes):
    """Signs with a key of no meaning, because signing is how libxmlsec1 computes a digest."""
    root = parsed(document)
    signature = xmlsec.template.create(root, xmlsec.Transform.EXCL_C14N, xmlsec.Transform.HMAC_SHA256)
    root.append(signature)
    reference = xmlsec.template.add_reference(signature, xmlsec.Transform.SHA256, uri="#" + identifier.decode())
    transform = xmlsec.template.add_transform(reference, xmlsec.Transform.EXCL_C14N)
    if prefixes:
        xmlsec.template.transform_add_c14n_inclusive_namespaces(transform, prefixes.decode().split())
    context = xmlsec.SignatureContext()
    register_ids(context, root)
    context.key = xmlsec.Key.from_binary_data(xmlsec.KeyData.HMAC, b"key")
    context.sign(signature)
    return base64.b64decode(signature.findtext(".//{%s}DigestValue" % DS)).hex()


def pem(kind, der):
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n".encode()


def verify(document, key):
    root = parsed(document)
    context = xmlsec.SignatureContext()
    register_ids(context, root)
    context.key = xmlsec.Key.from_memory(pem("PUBLIC KEY", key), xmlsec.KeyFormat.PEM)
    try:
        context.verify(root.find(".//{%s}Signature" % DS))
    except xmlsec.Error:
        return "invalid"
    return "valid"


def sign(document, key):
    root = parsed(document)
    context = xmlsec.SignatureContext()
    register_ids(context, root)
    context.key = xmlsec.Key.from_memory(pem("PRIVATE KEY", key), xmlsec.KeyFormat.PEM)
    context.sign(root.find(".//{%s}Signature" % DS))
    return etree.tostring(root).hex()


def certificate(der):
    found = x509.load_der_x509_certificate(der)
    found.verify_directly_issued_by(found)
    return found.subject.rfc4514_string().encode().hex()


COMMANDS = {f.__name__: f for f in (c14n, digests, verify, sign, certificate)}

for line in sys.stdin:
    command, *arguments = line.rstrip("\n").split(" ")
    print(COMMANDS[command](*map(bytes.fromhex, arguments)), flush=True)
