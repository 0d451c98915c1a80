// Signs with the code of the pages what a test asks for on standard input, for the test to compare.
import { readFileSync } from 'node:fs';
import { fromHex, hex } from '../../web/key/bytes';
import { accountOf, sign } from '../../web/key/secp256k1';
import { secretOf } from '../../web/key/signer';
import { type TypedData, textDigest, typedDigest } from '../../web/key/typed';

interface Asked {
  signings: { secret: string; text: string; typed: TypedData }[];
  seeds: string[];
}

const asked = JSON.parse(readFileSync(0, 'utf8')) as Asked;
const signings = [];
for (const { secret, text, typed } of asked.signings) {
  const key = fromHex(secret);
  signings.push({
    account: hex(accountOf(key)),
    text: hex(await sign(key, textDigest(text))),
    typed: hex(await sign(key, typedDigest(typed))),
  });
}
const secrets = [];
for (const seed of asked.seeds) secrets.push(hex(await secretOf(fromHex(seed))));

// What cannot be signed as it is written is not signed at all.
const typed = asked.signings[0]!.typed;
const changed = (message: object, types = typed.types) => ({ ...typed, types, message: { ...typed.message, ...message } });
const wrong: [string, TypedData][] = [
  ['notAfter is too large', changed({ notAfter: (2n ** 64n).toString() })],
  ['a field that is not signed', changed({ unsigned: 1 })],
  ['an unknown type', changed({}, { ...typed.types, Allow: [{ name: 'studyId', type: 'bytes32[]' }] })],
  ['a short hash', changed({ studyId: '0x12' })],
];
const refused = wrong.filter(([, data]) => {
  try {
    typedDigest(data);
    return false;
  } catch {
    return true;
  }
});
console.log(JSON.stringify({ signings, secrets, refused: refused.map(([name]) => name) }));
