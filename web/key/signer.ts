// The three places in which a patient's key can be. None of them gives it to the server, and this page keeps it no longer than one signature takes.
import { fromHex, hex, joined, toNumber, utf8, word } from './bytes';
import { ORDER, accountOf, isSecret, sign } from './secp256k1';
import { type TypedData, textDigest, typedDigest } from './typed';

export interface Signer {
  // 0x and 40 hexadecimal digits, small.
  readonly account: string;
  text(message: string): Promise<string>;
  typed(data: TypedData): Promise<string>;
}

// Somebody did not want to, or cannot: for the person in front of the page.
export class Refusal extends Error {}

// What makes the same key of the same passkey for ever. Changing any of it takes every patient's key away.
const SALT = utf8('PACS Bridge: the key of an owner of studies, 1');
const INFO = utf8('secp256k1');

function signing(secret: Uint8Array): Signer {
  const made = async (digest: Uint8Array) => hex(await sign(secret, digest));
  return { account: hex(accountOf(secret)), text: message => made(textDigest(message)), typed: data => made(typedDigest(data)) };
}

// A number below the order without a bias that matters: 48 bytes are reduced (FIPS 186-5, A.4.1).
export async function secretOf(seed: Uint8Array): Promise<Uint8Array> {
  const key = await crypto.subtle.importKey('raw', seed as BufferSource, 'HKDF', false, ['deriveBits']);
  const parameters = { name: 'HKDF', hash: 'SHA-256', salt: SALT as BufferSource, info: INFO as BufferSource };
  const bits = new Uint8Array(await crypto.subtle.deriveBits(parameters, key, 384));
  return word((toNumber(bits) % (ORDER - 1n)) + 1n);
}

const random = () => crypto.getRandomValues(new Uint8Array(32));
const wanted = { prf: { eval: { first: SALT as BufferSource } } };

function prfOf(credential: PublicKeyCredential): Uint8Array | undefined {
  const first = credential.getClientExtensionResults().prf?.results?.first;
  return first ? new Uint8Array(first instanceof ArrayBuffer ? first : first.buffer) : undefined;
}

async function credential(work: () => Promise<Credential | null>): Promise<PublicKeyCredential> {
  if (!isSecureContext || !('PublicKeyCredential' in window)) {
    throw new Refusal('This browser has no passkeys here. They need a connection by https.');
  }
  const found = await work().catch((error: unknown) => {
    const name = error instanceof DOMException ? error.name : '';
    if (name === 'NotAllowedError' || name === 'AbortError') throw new Refusal('No passkey was used. You can try again.');
    if (name === 'SecurityError') throw new Refusal('Passkeys do not work under this address. Open the page under the name that your hospital gave you.');
    throw error;
  });
  if (!(found instanceof PublicKeyCredential)) throw new Refusal('No passkey was used. You can try again.');
  return found;
}

// The seed of a passkey that is on this device or in this person's keychain: of any that he chooses, or of one.
async function seedOf(id?: ArrayBuffer): Promise<Uint8Array> {
  const allowCredentials = id ? [{ type: 'public-key' as const, id }] : [];
  const publicKey = { challenge: random() as BufferSource, userVerification: 'required' as const, allowCredentials, extensions: wanted };
  const seed = prfOf(await credential(() => navigator.credentials.get({ publicKey })));
  if (!seed) throw new Refusal('This passkey cannot keep a key for signing. Use one of a newer phone, computer or security key.');
  return seed;
}

export async function passkey(): Promise<Signer> {
  return signing(await secretOf(await seedOf()));
}

// Makes a passkey. `site` is what the person's device calls it.
export async function newPasskey(site: string): Promise<Signer> {
  const name = `My images at ${site}`;
  const publicKey: PublicKeyCredentialCreationOptions = {
    challenge: random() as BufferSource,
    rp: { name: site },
    user: { id: random() as BufferSource, name, displayName: name },
    // It signs nothing that counts: any algorithm will do (COSE: ES256, EdDSA, RS256).
    pubKeyCredParams: [-7, -8, -257].map(alg => ({ type: 'public-key', alg })),
    authenticatorSelection: { residentKey: 'required', userVerification: 'required' },
    extensions: wanted,
  };
  const made = await credential(() => navigator.credentials.create({ publicKey }));
  return signing(await secretOf(prfOf(made) ?? (await seedOf(made.rawId))));
}

interface Ethereum {
  request(asked: { method: string; params?: unknown[] }): Promise<unknown>;
}

export const injected = () => (window as { ethereum?: Ethereum }).ethereum;

// A wallet that put itself into the page (EIP-1193).
export async function wallet(): Promise<Signer> {
  const ethereum = injected();
  if (!ethereum) throw new Refusal('There is no wallet in this browser.');
  const ask = (method: string, ...params: unknown[]) =>
    ethereum.request({ method, params }).catch((error: unknown) => {
      const { code, message } = error as { code?: number; message?: string };
      throw new Refusal(code === 4001 ? 'The wallet did not sign. You can try again.' : `The wallet says: ${message ?? 'it cannot do that'}`);
    });
  const accounts = (await ask('eth_requestAccounts')) as string[];
  const account = accounts[0]?.toLowerCase();
  if (!account) throw new Refusal('The wallet shows no account.');
  return {
    account,
    text: async message => String(await ask('personal_sign', hex(utf8(message)), account)),
    typed: async data => String(await ask('eth_signTypedData_v4', account, JSON.stringify(data))),
  };
}

// A key on paper: 52 characters of Crockford's base 32 for the key and 4 for its check.
const DIGITS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

async function check(secret: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest('SHA-256', joined(utf8('PACS Bridge key on paper'), secret) as BufferSource)).slice(0, 3);
}

function digits(number: bigint, length: number): string {
  return Array.from({ length }, (_, at) => DIGITS[Number((number >> BigInt(5 * (length - 1 - at))) & 31n)]).join('');
}

async function written(secret: Uint8Array): Promise<string> {
  // 280 bits: 256 of the key and 24 of the check.
  const all = toNumber(joined(secret, await check(secret)));
  return (digits(all, 56).match(/.{4}/g) ?? []).join(' ');
}

// The key of a passkey, to be written down: whoever has it decides as its owner does.
export async function onPaper(): Promise<{ account: string; code: string }> {
  const secret = await secretOf(await seedOf());
  return { account: hex(accountOf(secret)), code: await written(secret) };
}

export async function paper(code: string): Promise<Signer> {
  const plain = code.toUpperCase().replace(/[\s-]/g, '').replace(/O/g, '0').replace(/[IL]/g, '1');
  const wrong = new Refusal('This is no key on paper: look for a mistyped character.');
  if (plain.length !== 56 || [...plain].some(digit => !DIGITS.includes(digit))) throw wrong;
  const all = [...plain].reduce((number, digit) => (number << 5n) | BigInt(DIGITS.indexOf(digit)), 0n);
  const bytes = fromHex(`0x${all.toString(16).padStart(70, '0')}`);
  const secret = bytes.slice(0, 32);
  if (hex(await check(secret)) !== hex(bytes.slice(32)) || !isSecret(secret)) throw wrong;
  return signing(secret);
}
