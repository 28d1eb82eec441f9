/**
 * Probes what the program relies on in `@std/crypto` besides its types: how it reads
 * streams, and its speed. A faster replacement would hide slowness in tests.
 */
import type { StdCrypto } from "./signatures.ts";

/** `crypto.subtle.digest`. */
export type DigestFunction = StdCrypto["crypto"]["subtle"]["digest"];

/** How a digest function reads a stream. */
export interface DigestBehaviour {
  /** Maximum number of chunks read ahead. */
  ahead: number;
  /** Whether it is correct for chunks of varying sizes in a reused buffer. */
  isRight: boolean;
  /** Whether it rejects with the stream's error. */
  passesErrors: boolean;
}

const MIB = 1024 * 1024;
/** Maximum speed ratio between the replacement and the real one. */
const MAX_SPEED_RATIO = 2;

/**
 * Probes how a digest function reads a stream.
 */
export async function probeDigestBehaviour(
  digest: DigestFunction,
): Promise<DigestBehaviour> {
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
    isRight: toHex(actual) === toHex(expected),
    passesErrors: await digest("SHA-256", {
      [Symbol.asyncIterator]: () => ({ next: failing }),
    }).then(() => false, (thrown) => thrown === error),
  };
}

/**
 * Measures a digest function.
 *
 * @param chunk Size of the chunks, in bytes.
 * @returns Its speed, in MiB/s.
 */
export async function measureDigestSpeed(
  digest: DigestFunction,
  chunk: number,
) {
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
 * Compares the behaviour and speed of the replacement with the real digest.
 *
 * @returns A sentence for the report.
 */
export function compareDigestSpeed(
  standIn: { behaviour: DigestBehaviour; speed: number },
  real: { behaviour: DigestBehaviour; speed: number },
): string {
  const [its, wanted] = [standIn, real].map(({ behaviour }) =>
    JSON.stringify(behaviour)
  );
  const ratio = standIn.speed / real.speed;
  const same = ratio < MAX_SPEED_RATIO && ratio > 1 / MAX_SPEED_RATIO;
  return `The stand-in, for networks with npm alone, takes streams ${
    its === wanted ? "as the real one does" : `as ${its}, not as ${wanted}`
  }, and is ${ratio.toFixed(2)} × as fast: ${
    same ? "the same class" : "NOT the same class"
  }.`;
}

function toHex(bytes: ArrayBuffer): string {
  return new Uint8Array(bytes).toHex();
}
