/** The rule `image.signature` of a manifest: who must have signed an artifact. */
import { ToolsmithError } from "../errors.ts";

/** An identity that must have signed, or a public key in PEM form. */
export type SignatureRule = IdentityRule | { key: string };

/** An identity that must have signed. */
export type IdentityRule = {
  /** A workflow's URL and ref, in which one `*` matches any text, or an e-mail address. */
  identity: string;
  /** The `https://` URL of the provider that vouches for the identity. */
  issuer: string;
  /** URL of the repository that GitHub must have run the workflow for. */
  repository?: string;
};

/** A satisfied rule, and who signed: the identity, or the digest of the key. */
export type VerifiedSignature = SignatureRule & { signer: string };

/** The provider of identities for GitHub's workflows. */
export const GITHUB_ISSUER = "https://token.actions.githubusercontent.com";
const IDENTITY_PATTERN =
  /^(?:https:\/\/[^\s@*/]+\/[^\s@*]+@(?!$)[^\s*]*\*?[^\s*]*|[^\s@*/:]+@[^\s@*/:]+)$/;
const HTTPS_PATTERN = /^https:\/\/[^\s@*]+$/;
const PUBLIC_KEY_PATTERN =
  /^-----BEGIN PUBLIC KEY-----\s[\w+/=\s]+-----END PUBLIC KEY-----$/;

/**
 * Makes a rule. For a workflow of github.com, the default issuer is GitHub's, and the
 * default repository the workflow's own: any repository can call a reusable workflow,
 * and then signs with the identity of that workflow.
 *
 * @throws {ToolsmithError} `usage`.
 */
export function createSignatureRule(
  fields: Partial<IdentityRule & { key: string }>,
): SignatureRule {
  const { identity = "" } = fields;
  const key = fields.key?.trim();
  const given = Object.values(fields).filter((it) => it !== undefined);
  if (key && given.length === 1 && PUBLIC_KEY_PATTERN.test(key)) return { key };
  const own = /^https:\/\/github\.com\/[^/]+\/[^/]+(?=\/)/.exec(identity)?.[0];
  const { issuer = own && GITHUB_ISSUER } = fields;
  const { repository = issuer === GITHUB_ISSUER ? own : undefined } = fields;
  const refusal = (reason: string, hint: string) => {
    const who = identity || "nobody";
    const message = `Cannot require a signature by ${who}: ${reason}`;
    return new ToolsmithError("usage", message, { hint });
  };
  if (key !== undefined || !IDENTITY_PATTERN.test(identity)) {
    throw refusal(
      "expected either the URL of a workflow, an e-mail address, or a public key in PEM form",
      "use https://github.com/OWNER/REPO/.github/workflows/FILE@refs/heads/BRANCH, with one * in the part after @ for any text",
    );
  }
  for (const url of [issuer ?? "", repository ?? "https://any"]) {
    if (HTTPS_PATTERN.test(url)) continue;
    throw refusal(
      url ? `${url} is not an https:// URL` : "its issuer is missing",
      "pass --issuer URL, such as https://accounts.google.com",
    );
  }
  return { identity, issuer: issuer!, ...repository && { repository } };
}
