/**
 * What the program relies on of `@std/crypto` besides its types: how it takes a
 * stream, and how fast it is. A stand-in that is faster would hide how slow the
 * program is where it is used.
 *
 * @module
 */
import type { StdCrypto } from "./signatures.ts";

/** `crypto.subtle.digest`. */
export type DigestOf = StdCrypto["crypto"]["subtle"]["digest"];

/** How a digest takes a stream. */
export interface Behaviour {
  /** How many chunks it asks for at a time, at most. */
  ahead: number;
  /** Whether it is right, with chunks of many sizes in the same buffer. */
  isRight: boolean;
  /** Whether it rejects with what the stream throws. */
  passesErrors: boolean;
}

const MIB = 1024 * 1024;
/** How many times as fast one of the same class may be. */
const SAME_CLASS = 2;

/**
 * Finds out how a digest takes a stream.
 *
 * @param digest The digest.
 * @returns What it does.
 */
export async function behaviourOf(digest: DigestOf): Promise<Behaviour> {
  const sizes = [...Array(130).keys(), 65536, MIB];
  const bytes = new Uint8Array(sizes.reduce((sum, size) => sum + size));
  bytes.forEach((_, at) => bytes[at] = at * at >> 8);
  const buffer = new Uint8Array(MIB);
  let [at, asked, ahead] = [0, 0, 0];
  const chunks = async (): Promise<IteratorResult<Uint8Array<ArrayBuffer>>> => {
    ahead = Math.max(ahead, ++asked);
    await new Promise((done) => setTimeout(done));
    asked--;
    const size = sizes.shift();
    if (size === undefined) return { done: true, value: undefined };
    buffer.set(bytes.subarray(at, at += size));
    return { done: false, value: buffer.subarray(0, size) };
  };
  const [actual, expected] = await Promise.all([
    digest("SHA-256", { [Symbol.asyncIterator]: () => ({ next: chunks }) }),
    crypto.subtle.digest("SHA-256", bytes),
  ]);
  const error = new Error("of the stream");
  const failing = (): Promise<never> => Promise.reject(error);
  return {
    ahead,
    isRight: hex(actual) === hex(expected),
    passesErrors: await digest("SHA-256", {
      [Symbol.asyncIterator]: () => ({ next: failing }),
    }).then(() => false, (thrown) => thrown === error),
  };
}

/**
 * Measures a digest.
 *
 * @param digest The digest.
 * @param chunk Size of the chunks, in bytes.
 * @returns How fast it is, in MiB/s.
 */
export async function speedOf(digest: DigestOf, chunk: number) {
  const count = 128 * MIB / chunk;
  const bytes = new Uint8Array(chunk).fill(7);
  const begun = performance.now();
  await digest(
    "SHA-256",
    (async function* () {
      for (let sent = 0; sent < count; sent++) yield bytes;
    })(),
  );
  return 128 / (performance.now() - begun) * 1000;
}

/**
 * Compares a stand-in with the real digest.
 *
 * @param standIn Its behaviour, and its speed.
 * @param real Those of the real one.
 * @returns A sentence for a report.
 */
export function verdict(
  standIn: { behaviour: Behaviour; speed: number },
  real: { behaviour: Behaviour; speed: number },
): string {
  const [its, wanted] = [standIn, real].map(({ behaviour }) =>
    JSON.stringify(behaviour)
  );
  const ratio = standIn.speed / real.speed;
  const same = ratio < SAME_CLASS && ratio > 1 / SAME_CLASS;
  return `The stand-in, for networks with npm alone, takes streams ${
    its === wanted ? "as the real one does" : `as ${its}, not as ${wanted}`
  }, and is ${ratio.toFixed(2)} × as fast: ${
    same ? "the same class" : "NOT the same class"
  }.`;
}

function hex(bytes: ArrayBuffer): string {
  return new Uint8Array(bytes).toHex();
}
