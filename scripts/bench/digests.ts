/**
 * Measures the digest engines: the runtime's, `@std/crypto`, and its npm
 * replacement.
 */
import { crypto as std } from "@std/crypto/crypto";
import { sha256OfChunks } from "../../lib/system/digest.ts";
import {
  compareDigestSpeed,
  type DigestFunction,
  measureDigestSpeed,
  probeDigestBehaviour,
} from "../npm/behaviour.ts";
import { crypto as standIn } from "../npm/std/crypto.ts";
import { measureInTurns, median } from "./measure.ts";

const KIB = 1024;

/** Measures all, and compares the npm replacement with the real `@std/crypto`. */
export async function measureDigests() {
  const runtime: DigestFunction = async (_algorithm, data) => {
    const chunks = data as AsyncIterable<Uint8Array<ArrayBuffer>>;
    return Uint8Array.fromHex(await sha256OfChunks(chunks, "runtime")).buffer;
  };
  const digests: [string, DigestFunction][] = [
    ["@std/crypto", std.subtle.digest],
    ["its stand-in", standIn.subtle.digest],
    ["the runtime", runtime],
  ];
  const rivals = digests.flatMap(([name, digest]) =>
    [64 * KIB, 1024 * KIB].map((chunk) => ({
      name: `${name}, chunks of ${chunk / KIB} KiB`,
      runOnce: () => measureDigestSpeed(digest, chunk),
    }))
  );
  const behaviours = await Promise.all(
    digests.map(([, digest]) => probeDigestBehaviour(digest)),
  );
  await measureInTurns("SHA-256 of a stream", rivals, "MiB/s", (rows) => {
    const [real, other] = [0, 1].map((at) => ({
      behaviour: behaviours[at],
      speed: median(rows[2 * at].values),
    }));
    return compareDigestSpeed(other, real);
  });
}
