// What is signed: structured data (EIP-712) and texts (EIP-191, version 0x45).
import { fromHex, joined, utf8, word } from './bytes';
import { keccak256 } from './keccak';

export interface Field {
  name: string;
  type: string;
}

export interface TypedData {
  types: Record<string, Field[]>;
  primaryType: string;
  domain: Record<string, unknown>;
  message: Record<string, unknown>;
}

const DOMAIN = 'EIP712Domain';

// Of types that have no types of their own in them: all of ours.
function typeHash(types: Record<string, Field[]>, name: string): Uint8Array {
  return keccak256(utf8(`${name}(${fieldsOf(types, name).map(field => `${field.type} ${field.name}`).join(',')})`));
}

function fieldsOf(types: Record<string, Field[]>, name: string): Field[] {
  const fields = types[name];
  if (!fields) throw new Error(`the type ${name} is not described`);
  return fields;
}

function number(value: unknown, bits: number): Uint8Array {
  const read = typeof value === 'string' || (typeof value === 'number' && Number.isSafeInteger(value)) ? BigInt(value) : -1n;
  if (read < 0n || read >> BigInt(bits)) throw new Error(`${String(value)} is no number of ${bits} bits`);
  return word(read);
}

function fixed(value: unknown, length: number): Uint8Array {
  const bytes = fromHex(String(value));
  if (bytes.length !== length) throw new Error(`${String(value)} has not ${length} bytes`);
  return bytes;
}

function encoded(type: string, value: unknown): Uint8Array {
  const unsigned = /^uint([0-9]+)$/.exec(type);
  if (unsigned) return number(value, Number(unsigned[1]));
  switch (type) {
    case 'bytes32':
      return fixed(value, 32);
    case 'address':
      return joined(new Uint8Array(12), fixed(value, 20));
    case 'bool':
      if (typeof value !== 'boolean') throw new Error(`${String(value)} is neither true nor false`);
      return word(value ? 1n : 0n);
    case 'string':
      if (typeof value !== 'string') throw new Error('a text is missing');
      return keccak256(utf8(value));
    default:
      throw new Error(`the type ${type} is not known here`);
  }
}

function structHash(types: Record<string, Field[]>, name: string, values: Record<string, unknown>): Uint8Array {
  const fields = fieldsOf(types, name);
  const unknown = Object.keys(values).find(key => !fields.some(field => field.name === key));
  if (unknown) throw new Error(`${unknown} would not be signed`);
  return keccak256(joined(typeHash(types, name), ...fields.map(field => encoded(field.type, values[field.name]))));
}

export function typedDigest(data: TypedData): Uint8Array {
  const parts = [structHash(data.types, DOMAIN, data.domain), structHash(data.types, data.primaryType, data.message)];
  return keccak256(joined(Uint8Array.of(0x19, 0x01), ...parts));
}

export function textDigest(text: string): Uint8Array {
  const bytes = utf8(text);
  return keccak256(joined(utf8(`\x19Ethereum Signed Message:\n${bytes.length}`), bytes));
}
