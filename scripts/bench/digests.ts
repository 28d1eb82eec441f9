/**
 * Who computes digests: the two engines, and what stands in for one of them where
 * only npm can be reached.
 *
 * @module
 */
import { crypto as std } from "@std/crypto/crypto";
import { sha256 } from "../../lib/system/digest.ts";
import {
  behaviourOf,
  type DigestOf,
  speedOf,
  verdict,
} from "../npm/behaviour.ts";
import { crypto as standIn } from "../npm/std/crypto.ts";
import { compare, median } from "./measure.ts";

const KIB = 1024;

/** Measures them, and compares the stand-in with the real `@std/crypto`. */
export async function digestRows() {
  const runtime: DigestOf = async (_algorithm, data) => {
    const chunks = data as AsyncIterable<Uint8Array<ArrayBuffer>>;
    return Uint8Array.fromHex(await sha256(chunks, "runtime")).buffer;
  };
  const digests: [string, DigestOf][] = [
    ["@std/crypto", std.subtle.digest],
    ["its stand-in", standIn.subtle.digest],
    ["the runtime", runtime],
  ];
  const rivals = digests.flatMap(([name, digest]) =>
    [64 * KIB, 1024 * KIB].map((chunk) => ({
      name: `${name}, chunks of ${chunk / KIB} KiB`,
      once: () => speedOf(digest, chunk),
    }))
  );
  const behaviours = await Promise.all(
    digests.map(([, digest]) => behaviourOf(digest)),
  );
  await compare("SHA-256 of a stream", rivals, "MiB/s", (rows) => {
    const [real, other] = [0, 1].map((at) => ({
      behaviour: behaviours[at],
      speed: median(rows[2 * at].values),
    }));
    return verdict(other, real);
  });
}
