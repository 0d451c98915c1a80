// Bytes, hexadecimal and numbers.

export const utf8 = (text: string) => new TextEncoder().encode(text);

export const hex = (bytes: Uint8Array) => `0x${[...bytes].map(byte => byte.toString(16).padStart(2, '0')).join('')}`;

export function fromHex(text: string): Uint8Array {
  if (!/^0x([0-9a-fA-F]{2})*$/.test(text)) throw new Error(`"${text}" is no hexadecimal number`);
  return Uint8Array.from(text.slice(2).match(/../g) ?? [], byte => parseInt(byte, 16));
}

export function joined(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const toNumber = (bytes: Uint8Array) => BigInt(hex(bytes) === '0x' ? '0x0' : hex(bytes));

// Big end first, in 32 bytes.
export function word(number: bigint): Uint8Array {
  if (number < 0n || number >> 256n) throw new Error('a number does not fit into 32 bytes');
  return fromHex(`0x${number.toString(16).padStart(64, '0')}`);
}
