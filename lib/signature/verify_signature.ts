/**
 * Verifies who signed an artifact, from the bundles that `cosign sign` 3 and GitHub's
 * `attest-build-provenance` attach to it.
 *
 * Formats: Sigstore bundle 0.3, DSSE 1.0, in-toto Statement 1.
 *
 * @module
 */
import type { SignedEntity, Signer } from "@sigstore/verify";
import { ToolsmithError } from "../errors.ts";
import {
  GITHUB_ISSUER,
  type IdentityRule,
  type SignatureRule,
  type VerifiedSignature,
} from "../manifest/signature_rule.ts";
import type { Artifact } from "../oci/artifact.ts";
import type { Endpoints } from "../oci/endpoints.ts";
import { fetchAttachedFiles } from "../oci/referrers.ts";
import { formatReference } from "../oci/reference.ts";
import { digestToSha256 } from "../system/digest.ts";
import { type RetryOptions, retryTransient } from "../system/retry.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import { loadTrustedRoots, type TrustOptions } from "./_trusted_roots.ts";

const BUNDLE = {
  type: "application/vnd.dev.sigstore.bundle.v0.3+json",
  maxBytes: 1024 * 1024,
};
const STATEMENT_TYPE = "application/vnd.in-toto+json";
/** Other statements, such as the result of a scan, do not say who made the image. */
const PREDICATE_PATTERN =
  /^https:\/\/(?:sigstore\.dev\/cosign\/sign|slsa\.dev\/provenance)\/v1$/;
/** The verifier compares each log entry and timestamp with all others. */
const MAX_PROOFS = 16;
/** Fulcio's certificate extension "Source Repository URI". */
const REPOSITORY_OID = "1.3.6.1.4.1.57264.1.12";

export type { TrustOptions };

const { bundleFromJSON, toSignedEntity, toTrustMaterial, Verifier } =
  await import("./_sigstore.ts");

// An import would be hoisted in the bundle, and cost every start 40 ms.
const crypto = process.getBuiltinModule("node:crypto");
// Sigstore's packages rely on Node's default digest, which Deno (2.9) lacks.
const verify = crypto.verify as (...args: unknown[]) => boolean;
const verifyBySha256 = (algorithm: unknown, ...rest: unknown[]) => {
  try {
    return verify(algorithm, ...rest);
  } catch (error) {
    if (algorithm) throw error;
    return verify("sha256", ...rest);
  }
};
Object.assign(crypto, { verify: verifyBySha256 });

/**
 * Verifies that an artifact has a signature that satisfies a rule. Asks the registry,
 * then the mirrors.
 *
 * Needs `--allow-net` for them, and for an identity the permissions of the trusted root.
 *
 * @throws {ToolsmithError} `signature_missing`, `signature_invalid`,
 * `trust_root_unavailable`, and errors of a registry without mirrors.
 */
export async function verifySignature(
  { digest, reference }: Artifact,
  { rule, registry, mirrors }: Endpoints & { rule: SignatureRule },
  options: TrustOptions & RetryOptions,
): Promise<VerifiedSignature> {
  const rejected = new Set<string>();
  const asked: string[] = [];
  for (const endpoint of [registry, ...mirrors]) {
    const { host } = endpoint;
    const fetch = () =>
      Array.fromAsync(fetchAttachedFiles(endpoint, digest, BUNDLE)).catch(
        (error) => {
          if (!(error instanceof RangesUnavailableError)) throw error;
          const { cause, message: why } = error;
          const message = `Cannot read the signatures at ${host}: ${why}`;
          const hint = "run deno with --allow-net, and oras login";
          throw cause ?? new ToolsmithError("unauthorized", message, { hint });
        },
      );
    let files: (Uint8Array | string)[] = [];
    try {
      files = await (mirrors[0] ? fetch() : retryTransient(fetch, options));
      asked.push(host);
    } catch (error) {
      options.signal?.throwIfAborted();
      if (mirrors.length === 0) throw error;
      asked.push(`${host} (failed: ${(error as Error).message})`);
    }
    for (const file of files) {
      try {
        if (typeof file === "string") throw new Error(file);
        const [signer, signed] = await verifyBundle(file, rule, options);
        if (!signed.includes(digestToSha256(digest))) {
          throw new Error(`${signer} signed another artifact`);
        }
        return { ...rule, signer };
      } catch (error) {
        if (error instanceof ToolsmithError) throw error;
        rejected.add(sanitizeLine((error as Error).message, 300));
      }
    }
  }
  const name = formatReference(reference);
  if (rejected.size === 0) {
    throw new ToolsmithError(
      "signature_missing",
      `Cannot use ${name}: no signature found at ${asked.join(", ")}`,
      { hint: `sign the image: cosign sign ${name}` },
    );
  }
  const expected = formatRule(rule);
  const found = [...rejected].slice(0, 5).join("; ");
  throw new ToolsmithError(
    "signature_invalid",
    `Cannot use ${name}: expected a signature by ${expected}; found: ${found}`,
    { hint: "find out who signed the image before you change image.signature" },
  );
}

/** Returns the signer, and the SHA-256 digests of what was signed. */
async function verifyBundle(
  bytes: Uint8Array,
  rule: SignatureRule,
  options: TrustOptions,
): Promise<[signer: string, signed: unknown[]]> {
  const bundle = bundleFromJSON(JSON.parse(decode(bytes)));
  const { tlogEntries, timestampVerificationData: data } =
    bundle.verificationMaterial;
  const proofs = tlogEntries.length + (data?.rfc3161Timestamps.length ?? 0);
  if (proofs > MAX_PROOFS) throw new Error(`more than ${MAX_PROOFS} proofs`);
  const entity = toSignedEntity(bundle);
  const signer = "key" in rule
    ? verifyKey(entity, rule.key)
    : await verifyIdentity(entity, rule, options);
  const envelope = bundle.content.$case === "dsseEnvelope" &&
    bundle.content.dsseEnvelope;
  const statement = envelope && envelope.payloadType === STATEMENT_TYPE
    ? JSON.parse(decode(envelope.payload))
    : {};
  if (!PREDICATE_PATTERN.test(statement.predicateType)) {
    throw new Error(`${signer} signed no provenance of an artifact`);
  }
  type Subject = { digest?: { sha256?: unknown } };
  const signed = statement.subject.map((it: Subject) => it.digest?.sha256);
  return [signer, signed];
}

function verifyKey(entity: SignedEntity, pem: string): string {
  if (entity.key.$case !== "public-key") throw new Error("signed by no key");
  const publicKey = parseKey(pem);
  const key = { publicKey, validFor: () => true };
  const trust = { certificateAuthorities: [], timestampAuthorities: [] };
  const logs = { tlogs: [], ctlogs: [] };
  const thresholds = { tlogThreshold: 0, timestampThreshold: 0 };
  // Where only a key is trusted, logs and times prove nothing.
  new Verifier({ ...trust, ...logs, publicKey: () => key }, thresholds)
    .verify({ ...entity, tlogEntries: [], timestamps: [] });
  return keyDigest(pem);
}

async function verifyIdentity(
  entity: SignedEntity,
  rule: IdentityRule,
  options: TrustOptions,
): Promise<string> {
  if (entity.key.$case !== "certificate") throw new Error("signed by a key");
  // GitHub's own instance vouches for GitHub's workflows alone.
  const isOfGithub = rule.issuer === GITHUB_ISSUER &&
    entity.key.certificate.issuer.includes("GitHub, Inc.");
  let identity: Signer["identity"];
  let failure: unknown;
  for (const root of await loadTrustedRoots(isOfGithub, options)) {
    // An instance without logs, such as GitHub's own, has timestamps.
    const tlogThreshold = Math.min(root.tlogs.length, 1);
    const ctlogThreshold = Math.min(root.ctlogs.length, 1);
    const thresholds = { tlogThreshold, ctlogThreshold };
    try {
      const verifier = new Verifier(toTrustMaterial(root), thresholds);
      identity ??= verifier.verify(entity).identity;
    } catch (error) {
      failure = error;
    }
  }
  if (!identity) throw failure;
  const { subjectAlternativeName: signer = "", oids = [] } = identity;
  const oid = oids.find((it) => it.oid?.id.join(".") === REPOSITORY_OID);
  // A UTF8String: tag, length, text.
  const repository = oid &&
    decode(oid.value.subarray(oid.value[1] > 127 ? 3 : 2));
  const { issuer = "" } = identity.extensions ?? {};
  const anyText = rule.identity.split("*").map(RegExp.escape).join(".*");
  const isExpected = new RegExp(`^${anyText}$`).test(signer) &&
    issuer === rule.issuer &&
    (!rule.repository || repository === rule.repository);
  if (isExpected) return signer;
  const found = formatRule({ identity: signer, issuer, repository });
  throw new Error(`a signature by ${found}`);
}

function formatRule(rule: SignatureRule): string {
  if ("key" in rule) return `the key ${keyDigest(rule.key)}`;
  const { identity, issuer, repository } = rule;
  const suffix = repository ? ` for ${repository}` : "";
  return `${identity}${suffix}, vouched for by ${issuer}`;
}

function parseKey(pem: string) {
  try {
    return crypto.createPublicKey(pem);
  } catch (cause) {
    const message = "Cannot use the key in image.signature: not a public key";
    const hint =
      "use the file that cosign generate-key-pair writes: cosign.pub";
    throw new ToolsmithError("manifest_invalid", message, { hint, cause });
  }
}

function keyDigest(pem: string): string {
  const der = parseKey(pem).export({ type: "spki", format: "der" });
  return `sha256:${crypto.createHash("sha256").update(der).digest("hex")}`;
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
