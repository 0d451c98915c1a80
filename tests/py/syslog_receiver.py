"""An audit record repository: syslog over TLS with octet counting (RFC 5425), which demands a client certificate. Keeps every message as a JSON
object a line: the fields of RFC 5424 and the message. Breaks a connection off at the first octet that is not of the framing.

    syslog_receiver.py PORT CERTIFICATE KEY CLIENT_CA OUT
"""
import json
import re
import socket
import ssl
import sys
import threading

HEAD = re.compile(rb"<(\d{1,3})>(\d{1,2}) (\S+) (\S+) (\S+) (\S+) (\S+) (-|\[.*?\]) (.*)", re.DOTALL)


def exactly(stream, count):
    octets = b""
    while len(octets) < count:
        more = stream.recv(count - len(octets))
        if not more:
            return None
        octets += more
    return octets


def messages(stream):
    while True:
        digits = b""
        while True:
            one = exactly(stream, 1)
            if one is None:
                assert not digits, "the connection ended within a length"
                return
            if one == b" ":
                break
            assert one.isdigit() and (digits or one != b"0") and len(digits) < 8, f"not a length: {digits + one!r}"
            digits += one
        message = exactly(stream, int(digits))
        if message is None:
            return
        yield message


def keep(stream, out, lock):
    subject = stream.getpeercert()["subject"]
    for message in messages(stream):
        found = HEAD.fullmatch(message)
        assert found, message
        assert not found[9].startswith(b"\xef\xbb\xbf"), "a byte order mark"
        names = ["pri", "version", "time", "host", "app", "process", "id", "data", "message"]
        kept = {name: value.decode() for name, value in zip(names, found.groups())}
        kept["client"] = [value for group in subject for key, value in group if key == "commonName"][0]
        with lock:
            out.write(json.dumps(kept) + "\n")
            out.flush()


def main():
    port, certificate, key, ca, path = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", int(port)))
    lock = threading.Lock()
    with open(path, "a", encoding="utf-8") as out:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()

            def serve(connection=connection):
                with context.wrap_socket(connection, server_side=True) as stream:
                    keep(stream, out, lock)

            threading.Thread(target=serve, daemon=True).start()


main()
