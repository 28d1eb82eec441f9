/**
 * Verifies what `cosign sign` 3 and GitHub's `attest-build-provenance` attach to an
 * artifact: Sigstore bundle 0.3, DSSE 1.0, in-toto Statement 1.
 */
import type { SignedEntity } from "@sigstore/verify";
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
import { type Digest, digestToSha256 } from "../system/digest.ts";
import { type RetryOptions, retryTransient } from "../system/retry.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import { loadTrustedRoots, type TrustOptions } from "./_trusted_roots.ts";
export type { TrustOptions };

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

/**
 * Finds a signature that satisfies a rule, at the registry, then at the mirrors.
 *
 * @throws {ToolsmithError} `signature_missing`, `signature_invalid`,
 * `trust_root_unavailable`, and errors of a registry without mirrors.
 */
export async function verifySignature(
  { digest, reference }: Artifact,
  { rule, registry, mirrors }: Endpoints & { rule: SignatureRule },
  options: TrustOptions & RetryOptions,
): Promise<VerifiedSignature> {
  // A package that is missing must not look like a wrong signature.
  await import("./_sigstore.ts");
  const rejected = new Set<string>();
  const asked: string[] = [];
  for (const endpoint of [registry, ...mirrors]) {
    const { host } = endpoint;
    const fetch = () => {
      const attached = fetchAttachedFiles(endpoint, digest, BUNDLE);
      return Array.fromAsync(attached).catch((error) => {
        if (!(error instanceof RangesUnavailableError)) throw error;
        const { cause, message: why } = error;
        const message = `Cannot read the signatures at ${host}: ${why}`;
        const hint = "run deno with --allow-net, and oras login";
        throw cause ?? new ToolsmithError("unauthorized", message, { hint });
      });
    };
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
        const signer = await verifyBundle(file, digest, rule, options);
        return { ...rule, signer };
      } catch (error) {
        if (error instanceof ToolsmithError) throw error;
        rejected.add(sanitizeLine((error as Error).message, 300));
      }
    }
  }
  const subject = `Cannot use ${formatReference(reference)}`;
  if (rejected.size === 0) {
    const message = `${subject}: no signature found at ${asked.join(", ")}`;
    const hint = `sign the image: cosign sign ${formatReference(reference)}`;
    throw new ToolsmithError("signature_missing", message, { hint });
  }
  const found = [...rejected].slice(0, 5).join("; ");
  const expected = `expected a signature by ${formatRule(rule)}`;
  const message = `${subject}: ${expected}; found: ${found}`;
  const hint =
    "find out who signed the image before you change image.signature";
  throw new ToolsmithError("signature_invalid", message, { hint });
}

async function verifyBundle(
  bytes: Uint8Array,
  digest: Digest,
  rule: SignatureRule,
  options: TrustOptions,
): Promise<string> {
  const { bundleFromJSON, toSignedEntity } = await import("./_sigstore.ts");
  const bundle = bundleFromJSON(JSON.parse(new TextDecoder().decode(bytes)));
  const { content, verificationMaterial } = bundle;
  const { tlogEntries, timestampVerificationData: data } = verificationMaterial;
  const proofs = tlogEntries.length + (data?.rfc3161Timestamps.length ?? 0);
  if (proofs > MAX_PROOFS) throw new Error(`more than ${MAX_PROOFS} proofs`);
  const entity = toSignedEntity(bundle);
  const signer = "key" in rule
    ? verifyKey(entity, rule.key)
    : await verifyIdentity(entity, rule, options);
  const statement = content.$case === "dsseEnvelope" &&
      content.dsseEnvelope.payloadType === STATEMENT_TYPE
    ? JSON.parse(content.dsseEnvelope.payload.toString())
    : {};
  if (!PREDICATE_PATTERN.test(statement.predicateType)) {
    throw new Error(`${signer} signed no provenance of an artifact`);
  }
  type Subject = { digest?: { sha256?: unknown } };
  const signed = statement.subject.map((it: Subject) => it.digest?.sha256);
  if (signed.includes(digestToSha256(digest))) return signer;
  throw new Error(`${signer} signed another artifact`);
}

/** Where only a key is trusted, logs and times prove nothing. */
function verifyKey({ key, signature }: SignedEntity, pem: string): string {
  if (key.$case !== "public-key") throw new Error("signed by no key");
  const { publicKey, digest } = parseKey(pem);
  if (signature.verifySignature(publicKey)) return digest;
  throw new Error("signature verification failed");
}

async function verifyIdentity(
  entity: SignedEntity,
  rule: IdentityRule,
  options: TrustOptions,
): Promise<string> {
  if (entity.key.$case !== "certificate") throw new Error("signed by a key");
  const { certificate } = entity.key;
  // GitHub's own instance vouches for GitHub's workflows alone.
  const isOfGithub = rule.issuer === GITHUB_ISSUER &&
    certificate.issuer.includes("GitHub, Inc.");
  const roots = await loadTrustedRoots(isOfGithub, options);
  const { toTrustMaterial, Verifier } = await import("./_sigstore.ts");
  const verifications = roots.map(async (root) => {
    // An instance without logs, such as GitHub's own, has timestamps.
    const tlogThreshold = Math.min(root.tlogs.length, 1);
    const ctlogThreshold = Math.min(root.ctlogs.length, 1);
    const limits = { tlogThreshold, ctlogThreshold };
    return await new Verifier(toTrustMaterial(root), limits).verify(entity);
  });
  const { identity } = await Promise.any(verifications)
    .catch(({ errors }) => Promise.reject(errors.at(-1)));
  const signer = identity?.subjectAlternativeName ?? "";
  const issuer = identity?.extensions?.issuer ?? "";
  const extension = certificate.extension(REPOSITORY_OID)?.valueObj;
  const repository = extension?.subs[0]?.value.toString();
  const anyText = rule.identity.split("*").map(RegExp.escape).join(".*");
  const isExpected = new RegExp(`^${anyText}$`).test(signer) &&
    issuer === rule.issuer &&
    (!rule.repository || repository === rule.repository);
  if (isExpected) return signer;
  const found = formatRule({ identity: signer, issuer, repository });
  throw new Error(`a signature by ${found}`);
}

function formatRule(rule: SignatureRule): string {
  if ("key" in rule) return `the key ${parseKey(rule.key).digest}`;
  const { identity, issuer, repository } = rule;
  const suffix = repository ? ` for ${repository}` : "";
  return `${identity}${suffix}, vouched for by ${issuer}`;
}

function parseKey(pem: string) {
  // An import would be hoisted in the bundle, and cost every start 20 ms.
  const crypto = process.getBuiltinModule("node:crypto");
  try {
    const publicKey = crypto.createPublicKey(pem);
    const der = publicKey.export({ type: "spki", format: "der" });
    return { publicKey, digest: `sha256:${crypto.hash("sha256", der)}` };
  } catch (cause) {
    const message = "Cannot use the key in image.signature: not a public key";
    const hint =
      "use the file that cosign generate-key-pair writes: cosign.pub";
    throw new ToolsmithError("manifest_invalid", message, { hint, cause });
  }
}
