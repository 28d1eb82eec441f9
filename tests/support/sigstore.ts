/**
 * A Sigstore instance in memory: a certificate authority and its log, a transparency
 * log and a timestamp authority; and the bundles that it signs.
 */
import { Buffer } from "node:buffer";
import {
  createHash,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
} from "node:crypto";
import {
  initializeCA,
  initializeCTLog,
  initializeTLog,
  initializeTSA,
} from "@sigstore/mock";

export const BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json";
export const GITHUB_ISSUER = "https://token.actions.githubusercontent.com";
export const REPOSITORY = "https://github.com/owner/repo";
export const WORKFLOW =
  `${REPOSITORY}/.github/workflows/publish.yml@refs/heads/main`;

/** What to sign, and as whom. */
export interface SignOptions {
  /** The digest of the artifact's manifest. */
  digest: string;
  /** @default {WORKFLOW} */
  identity?: string;
  /** @default {GITHUB_ISSUER} */
  issuer?: string;
  /** @default {REPOSITORY} */
  repository?: string;
  /** @default {"https://slsa.dev/provenance/v1"} */
  predicateType?: string;
  /** @default {"application/vnd.in-toto+json"} */
  payloadType?: string;
  /** When the certificate is issued. @default {new Date()} */
  issued?: Date;
}

/** A JSON object that a test changes. */
// deno-lint-ignore no-explicit-any
export type Json = any;

/** A Sigstore instance. */
export interface Sigstore {
  /** Its trusted root, as JSON. */
  trustedRoot: Json;
  /** Signs a statement with a certificate, and logs it. */
  sign(options: SignOptions): Promise<Json>;
}

/** A key pair, and bundles that it signs. */
export interface SigningKey {
  /** The public key in PEM form. */
  publicKey: string;
  /** Signs a statement without a certificate and a log. */
  sign(options: SignOptions): Json;
}

const P256 = { namedCurve: "P-256" };
const REKOR_URL = "https://rekor.test";
const ISSUER_OID = "1.3.6.1.4.1.57264.1.8";
const REPOSITORY_OID = "1.3.6.1.4.1.57264.1.12";

/**
 * Creates an instance.
 *
 * @param kind `logs` like Sigstore's public instance; `timestamps`, like GitHub's own,
 * has a timestamp authority instead of logs.
 */
export async function createSigstore(
  kind: "logs" | "timestamps" = "logs",
): Promise<Sigstore> {
  const caKeys = generateKeyPairSync("ec", P256);
  const ctKeys = generateKeyPairSync("ec", P256);
  const logKeys = generateKeyPairSync("ec", P256);
  const tsaKeys = generateKeyPairSync("ec", P256);
  const hasLogs = kind === "logs";
  const ctLog = await initializeCTLog(ctKeys);
  const log = await initializeTLog(REKOR_URL, logKeys);
  const ca = (clock?: Date) =>
    initializeCA(caKeys, hasLogs ? ctLog : undefined, clock);
  const { rootCertificate } = await ca();
  const tsa = await initializeTSA(tsaKeys);
  // The verifier reads no times whose milliseconds end in a zero.
  Object.assign(tsa, { getCurrentTime: wholeSecond });
  const validFor = { start: "2020-01-01T00:00:00Z" };
  const chain = (...certificates: ArrayBufferView[]) => ({
    certChain: { certificates: certificates.map(rawBytes) },
    validFor,
  });
  const logInstance = (key: KeyObject) => {
    const der = key.export({ type: "spki", format: "der" });
    return {
      baseUrl: REKOR_URL,
      hashAlgorithm: "SHA2_256",
      publicKey: {
        ...rawBytes(der),
        keyDetails: "PKIX_ECDSA_P256_SHA_256",
        validFor,
      },
      logId: { keyId: createHash("sha256").update(der).digest("base64") },
    };
  };
  return {
    trustedRoot: {
      mediaType: "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
      tlogs: hasLogs ? [logInstance(logKeys.publicKey)] : [],
      ctlogs: hasLogs ? [logInstance(ctKeys.publicKey)] : [],
      certificateAuthorities: [chain(rootCertificate)],
      timestampAuthorities: [
        chain(tsa.intCertificate, tsa.rootCertificate),
      ],
    },
    async sign(options) {
      const { privateKey, publicKey } = generateKeyPairSync("ec", P256);
      const { identity = WORKFLOW, issuer = GITHUB_ISSUER, issued } = options;
      const { repository = REPOSITORY } = options;
      const certificate = await (await ca(issued)).issueCertificate({
        publicKey: new Uint8Array(
          publicKey.export({ type: "spki", format: "der" }),
        ),
        subjectAltName: identity,
        extensions: [
          { oid: ISSUER_OID, value: issuer },
          { oid: REPOSITORY_OID, value: repository },
        ],
      });
      const envelope = signStatement(options, privateKey);
      const [{ sig }] = envelope.signatures;
      const pem = `-----BEGIN CERTIFICATE-----\n${
        rawBytes(certificate).rawBytes
      }\n-----END CERTIFICATE-----\n`;
      const bundle = toBundle(envelope, { certificate: rawBytes(certificate) });
      const material = bundle.verificationMaterial;
      if (hasLogs) {
        material.tlogEntries.push(toEntry(
          await log.log({
            apiVersion: "0.0.1",
            kind: "dsse",
            spec: {
              envelopeHash: hashOf(JSON.stringify(envelope)),
              payloadHash: hashOf(Buffer.from(envelope.payload, "base64")),
              signatures: [{
                signature: sig,
                verifier: Buffer.from(pem).toString("base64"),
              }],
            },
          }),
        ));
      } else {
        const response = await tsa.timestamp({
          artifactHash: createHash("sha256")
            .update(Buffer.from(sig, "base64")).digest(),
          hashAlgorithmOID: "2.16.840.1.101.3.4.2.1",
          nonce: 1,
          policyOID: "1.2.3.4.1",
          certReq: true,
        });
        const signedTimestamp = rawBytes(response).rawBytes;
        material.timestampVerificationData.rfc3161Timestamps.push({
          signedTimestamp,
        });
      }
      return bundle;
    },
  };
}

/** Creates a key pair, as `cosign generate-key-pair` does. */
export function createSigningKey(
  type: "ecdsa" | "ed25519" | "rsa" = "ecdsa",
): SigningKey {
  const { publicKey, privateKey } = type === "ecdsa"
    ? generateKeyPairSync("ec", P256)
    : type === "rsa"
    ? generateKeyPairSync("rsa", { modulusLength: 2048 })
    : generateKeyPairSync("ed25519");
  return {
    publicKey: publicKey.export({ type: "spki", format: "pem" }) as string,
    sign: (options) =>
      toBundle(signStatement(options, privateKey), {
        publicKey: { hint: randomBytes(8).toString("hex") },
      }),
  };
}

function toBundle(dsseEnvelope: Json, key: Json): Json {
  const timestampVerificationData = { rfc3161Timestamps: [] };
  return {
    mediaType: BUNDLE_TYPE,
    verificationMaterial: {
      ...key,
      tlogEntries: [],
      timestampVerificationData,
    },
    dsseEnvelope,
  };
}

/** Signs an in-toto statement in a DSSE envelope. */
function signStatement(options: SignOptions, key: KeyObject) {
  const { digest, predicateType = "https://slsa.dev/provenance/v1" } = options;
  const payload = JSON.stringify({
    _type: "https://in-toto.io/Statement/v1",
    subject: [{ name: "image", digest: { sha256: digest.slice(7) } }],
    predicateType,
    predicate: {},
  });
  const { payloadType = "application/vnd.in-toto+json" } = options;
  const signed =
    `DSSEv1 ${payloadType.length} ${payloadType} ${payload.length} ${payload}`;
  const algorithm = key.asymmetricKeyType === "ed25519" ? null : "sha256";
  const sig = sign(algorithm, Buffer.from(signed), key).toString("base64");
  return {
    payloadType,
    payload: Buffer.from(payload).toString("base64"),
    signatures: [{ sig }],
  };
}

/** Converts the log's response to the form of a bundle. */
function toEntry(response: Json): Json {
  const [entry]: Json[] = Object.values(response);
  const { inclusionProof, signedEntryTimestamp } = entry.verification;
  return {
    logIndex: String(entry.logIndex),
    logId: { keyId: Buffer.from(entry.logID, "hex").toString("base64") },
    kindVersion: { kind: "dsse", version: "0.0.1" },
    integratedTime: String(entry.integratedTime),
    inclusionPromise: { signedEntryTimestamp },
    inclusionProof: {
      logIndex: String(inclusionProof.logIndex),
      treeSize: String(inclusionProof.treeSize),
      rootHash: Buffer.from(inclusionProof.rootHash, "hex").toString("base64"),
      hashes: [],
      checkpoint: { envelope: inclusionProof.checkpoint },
    },
    canonicalizedBody: entry.body,
  };
}

function hashOf(data: string | Uint8Array) {
  const value = createHash("sha256").update(data).digest("hex");
  return { algorithm: "sha256", value };
}

function rawBytes(bytes: ArrayBufferView) {
  const { buffer, byteOffset, byteLength } = bytes;
  return {
    rawBytes: Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength)
      .toString("base64"),
  };
}

function wholeSecond(): Date {
  return new Date(Math.floor(Date.now() / 1000) * 1000);
}
