// Keccak-256 as Ethereum has it: Keccak[c = 512] of the third-round submission, which pads with 0x01 where SHA-3 (FIPS 202) pads with 0x06.

const RATE = 136;
const MASK = (1n << 64n) - 1n;

// Offsets of rho and places of pi (FIPS 202, 3.2.2 and 3.2.3), walked in one round trip of lanes.
const [ROTATIONS, PLACES] = walk();
const ROUND_CONSTANTS = constants();

function walk(): [bigint[], number[]] {
  const rotations: bigint[] = [];
  const places: number[] = [];
  let [x, y] = [1, 0];
  for (let t = 0; t < 24; t += 1) {
    [x, y] = [y, (2 * x + 3 * y) % 5];
    rotations.push(BigInt((((t + 1) * (t + 2)) / 2) % 64));
    places.push(x + 5 * y);
  }
  return [rotations, places];
}

// By the shift register of FIPS 202, 3.2.5.
function constants(): bigint[] {
  let register = 1;
  const bit = () => {
    const out = register & 1;
    register = register & 0x80 ? ((register << 1) ^ 0x71) & 0xff : register << 1;
    return out;
  };
  return Array.from({ length: 24 }, () => {
    let constant = 0n;
    for (let j = 0; j < 7; j += 1) if (bit()) constant |= 1n << BigInt(2 ** j - 1);
    return constant;
  });
}

const rotated = (lane: bigint, by: bigint) => ((lane << by) | (lane >> (64n - by))) & MASK;

function permute(a: bigint[]): void {
  for (const constant of ROUND_CONSTANTS) {
    const column = [0, 1, 2, 3, 4].map(x => a[x]! ^ a[x + 5]! ^ a[x + 10]! ^ a[x + 15]! ^ a[x + 20]!);
    for (let at = 0; at < 25; at += 1) a[at]! ^= column[(at + 4) % 5]! ^ rotated(column[(at + 1) % 5]!, 1n);
    let carried = a[1]!;
    for (let t = 0; t < 24; t += 1) {
      const place = PLACES[t]!;
      [a[place], carried] = [rotated(carried, ROTATIONS[t]!), a[place]!];
    }
    for (let row = 0; row < 25; row += 5) {
      const lanes = a.slice(row, row + 5);
      for (let x = 0; x < 5; x += 1) a[row + x] = lanes[x]! ^ (~lanes[(x + 1) % 5]! & MASK & lanes[(x + 2) % 5]!);
    }
    a[0]! ^= constant;
  }
}

export function keccak256(message: Uint8Array): Uint8Array {
  const padded = new Uint8Array((Math.floor(message.length / RATE) + 1) * RATE);
  padded.set(message);
  padded[message.length]! |= 0x01;
  padded[padded.length - 1]! |= 0x80;
  const words = new DataView(padded.buffer);
  const state = new Array<bigint>(25).fill(0n);
  for (let block = 0; block < padded.length; block += RATE) {
    for (let lane = 0; lane < RATE / 8; lane += 1) state[lane]! ^= words.getBigUint64(block + 8 * lane, true);
    permute(state);
  }
  const digest = new DataView(new ArrayBuffer(32));
  for (let lane = 0; lane < 4; lane += 1) digest.setBigUint64(8 * lane, state[lane]!, true);
  return new Uint8Array(digest.buffer);
}
