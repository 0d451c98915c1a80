"""A wallet, as eth-account signs: the judge of what pages ask wallets to sign, and of what their own script signs.

    wallet.py PRIVATE_KEY

Reads requests of EIP-1193, a line of JSON each ({"method": ..., "params": [...]}), and answers each with a line ({"result": ...} or {"error": ...}).
"""

import json
import sys

from eth_account import Account
from eth_account.messages import encode_defunct


def answer(account, method, params):
    if method == "eth_requestAccounts":
        return [account.address]
    if method == "personal_sign":
        message = encode_defunct(hexstr=params[0])
        return "0x" + account.sign_message(message).signature.hex().removeprefix("0x")
    if method == "eth_signTypedData_v4":
        assert params[0].lower() == account.address.lower(), "another account"
        signed = account.sign_typed_data(full_message=json.loads(params[1]))
        return "0x" + signed.signature.hex().removeprefix("0x")
    raise ValueError(f"{method} is not known")


def main():
    account = Account.from_key(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            said = {"result": answer(account, asked["method"], asked.get("params", []))}
        except Exception as error:
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)


main()
