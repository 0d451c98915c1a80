// Signatures of Ethereum accounts: ECDSA over secp256k1 (SEC 2, 2.4.1) with the nonces of RFC 6979. Browsers have no such key of their own, so that it is
// computed here, from a secret that is in memory while something is signed.
//
// Every multiplication takes the same steps whatever its number is: formulas without exceptions (Renes, Costello and Batina 2015, algorithm 7 for a = 0) and
// an addition for each bit, used or not. Big integers are not constant in time below that.
import { joined, toNumber, word } from './bytes';
import { keccak256 } from './keccak';

const P = 2n ** 256n - 2n ** 32n - 977n;
export const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
const B3 = 21n;

// Homogeneous: X/Z, Y/Z.
type Point = readonly [bigint, bigint, bigint];
const NOWHERE: Point = [0n, 1n, 0n];
const BASE: Point = [
  0x79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798n,
  0x483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8n,
  1n,
];

const mod = (number: bigint, by: bigint) => ((number % by) + by) % by;

function power(base: bigint, exponent: bigint, by: bigint): bigint {
  let result = 1n;
  for (let at = 255n; at >= 0n; at -= 1n) {
    result = (result * result) % by;
    if ((exponent >> at) & 1n) result = (result * base) % by;
  }
  return result;
}

// By Fermat: both moduli are prime.
const inverse = (number: bigint, by: bigint) => power(mod(number, by), by - 2n, by);

function sum([x1, y1, z1]: Point, [x2, y2, z2]: Point): Point {
  const xx = x1 * x2;
  const yy = y1 * y2;
  const zz = mod(z1 * z2 * B3, P);
  const xy = mod((x1 + y1) * (x2 + y2) - xx - yy, P);
  const yz = mod((y1 + z1) * (y2 + z2) - yy - z1 * z2, P);
  const xz = mod((x1 + z1) * (x2 + z2) - xx - z1 * z2, P) * B3;
  const [minus, plus, triple] = [mod(yy - zz, P), mod(yy + zz, P), 3n * xx];
  return [mod(xy * minus - yz * xz, P), mod(minus * plus + triple * xz, P), mod(yz * plus + xy * triple, P)];
}

function times(scalar: bigint, point: Point): Point {
  let result = NOWHERE;
  for (let at = 255n; at >= 0n; at -= 1n) {
    result = sum(result, result);
    const added = sum(result, point);
    result = [result, added][Number((scalar >> at) & 1n)]!;
  }
  return result;
}

function affine([x, y, z]: Point): [bigint, bigint] {
  const scale = inverse(z, P);
  return [mod(x * scale, P), mod(y * scale, P)];
}

// Whether 32 bytes are a private key.
export function isSecret(bytes: Uint8Array): boolean {
  const number = toNumber(bytes);
  return bytes.length === 32 && number > 0n && number < ORDER;
}

// The account of a private key: the last 20 bytes of the hash of its public key.
export function accountOf(secret: Uint8Array): Uint8Array {
  const [x, y] = affine(times(toNumber(secret), BASE));
  return keccak256(joined(word(x), word(y))).slice(12);
}

async function hmac(key: Uint8Array, ...parts: Uint8Array[]): Promise<Uint8Array> {
  const imported = await crypto.subtle.importKey('raw', key as BufferSource, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  return new Uint8Array(await crypto.subtle.sign('HMAC', imported, joined(...parts) as BufferSource));
}

// The numbers that RFC 6979 (3.2) gives for a key and a digest, one after the other.
async function* nonces(secret: Uint8Array, digest: Uint8Array): AsyncGenerator<bigint> {
  const seed = joined(secret, word(mod(toNumber(digest), ORDER)));
  const [zero, one] = [Uint8Array.of(0), Uint8Array.of(1)];
  let [key, value]: [Uint8Array, Uint8Array] = [new Uint8Array(32), new Uint8Array(32).fill(1)];
  for (const mark of [zero, one]) {
    key = await hmac(key, value, mark, seed);
    value = await hmac(key, value);
  }
  for (;;) {
    value = await hmac(key, value);
    const nonce = toNumber(value);
    if (nonce > 0n && nonce < ORDER) yield nonce;
    key = await hmac(key, value, zero);
    value = await hmac(key, value);
  }
}

// r, s and the recovery number plus 27, as Ethereum's contracts take them; s is the smaller one of two (EIP-2).
export async function sign(secret: Uint8Array, digest: Uint8Array): Promise<Uint8Array> {
  const [key, message] = [toNumber(secret), toNumber(digest)];
  for await (const nonce of nonces(secret, digest)) {
    const [x, y] = affine(times(nonce, BASE));
    const r = mod(x, ORDER);
    const s = mod(inverse(nonce, ORDER) * (message + r * key), ORDER);
    if (r === 0n || s === 0n) continue;
    const recovery = Number(y & 1n) | (x >= ORDER ? 2 : 0);
    const high = s > ORDER / 2n;
    return joined(word(r), word(high ? ORDER - s : s), Uint8Array.of(27 + (high ? recovery ^ 1 : recovery)));
  }
  throw new Error('no number can sign this');
}
