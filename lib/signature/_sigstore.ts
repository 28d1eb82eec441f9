/**
 * What verifying a signature needs of Sigstore's packages. They are large, so this
 * module is imported dynamically; the bundle keeps it compressed until then.
 */
export { bundleFromJSON } from "@sigstore/bundle";
export { TrustedRoot } from "@sigstore/protobuf-specs";
export { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";
