/** Sigstore's packages: large, so imported dynamically and compressed in the bundle. */
import crypto from "node:crypto";
export { bundleFromJSON } from "@sigstore/bundle";
export { TrustedRoot } from "@sigstore/protobuf-specs";
export { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";

// The packages rely on Node's default digest, which Deno (2.9) lacks.
const verify = crypto.verify as (...args: unknown[]) => boolean;
Object.assign(crypto, {
  verify(algorithm: unknown, ...rest: unknown[]) {
    try {
      return verify(algorithm, ...rest);
    } catch {
      return verify(algorithm ?? "sha256", ...rest);
    }
  },
});
