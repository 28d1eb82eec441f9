/** The token endpoint of a registry with bearer tokens, as ghcr.io has one. */
import { type Certificate, readPem } from "./certificates.ts";

/** Users and permissions. */
export interface TokenRules {
  /** The one user. */
  username: string;
  /** That user's password. */
  password: string;
  /** Whether anonymous users may pull, as from a public package. @default {false} */
  anonymousPull?: boolean;
  /**
   * The response to a known user's push request: a token with or without push
   * permission, or 403.
   *
   * @default {"granted"}
   */
  push?: "granted" | "withheld" | "denied";
  /** The token's `expires_in`, in seconds. @default {300} */
  tokenSeconds?: number;
}

/** A running token endpoint. */
export interface TokenServer extends AsyncDisposable {
  /** The endpoint's URL in the registry's challenges. */
  realm: string;
  /** The registry's name in tokens. */
  service: string;
  /** The issuer in tokens. */
  issuer: string;
}

const SERVICE = "test-registry";
const ISSUER = "test-issuer";

/**
 * Starts a token endpoint on loopback.
 *
 * @param certificate Signs the tokens; the registry trusts its authority.
 * @returns The running endpoint.
 */
export async function startTokenServer(
  certificate: Certificate,
  rules: TokenRules,
): Promise<TokenServer> {
  const sign = await createTokenSigner(certificate);
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    async (request) => {
      const known = request.headers.get("authorization");
      const user = `${rules.username}:${rules.password}`;
      if (known !== null && known !== `Basic ${btoa(user)}`) {
        return refusalResponse(401, "UNAUTHORIZED", "authentication required");
      }
      if (known === null && !rules.anonymousPull) {
        return refusalResponse(401, "UNAUTHORIZED", "authentication required");
      }
      const access = parseScopes(new URL(request.url));
      const pushes = access.some(({ actions }) => actions.includes("push"));
      if (known !== null && pushes && rules.push === "denied") {
        return refusalResponse(
          403,
          "DENIED",
          "permission_denied: write_package",
        );
      }
      const pullOnly = known === null || rules.push === "withheld";
      if (pullOnly) access.forEach((scope) => scope.actions = ["pull"]);
      const { tokenSeconds = 300 } = rules;
      const token = await sign(access);
      return Response.json({ token, expires_in: tokenSeconds });
    },
  );
  return {
    realm: `http://127.0.0.1:${server.addr.port}/token`,
    service: SERVICE,
    issuer: ISSUER,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

interface Scope {
  type: string;
  name: string;
  actions: string[];
}

/** Parses `repository:some/name:pull,push`, in one or several parameters. */
function parseScopes(url: URL): Scope[] {
  const words = url.searchParams.getAll("scope").join(" ").split(" ");
  return words.filter((word) => word !== "").map((word) => {
    const [type, name, actions] = word.split(":");
    return { type, name, actions: actions.split(",") };
  });
}

/** Creates a function that signs JSON Web Tokens. */
async function createTokenSigner(certificate: Certificate) {
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const key = await crypto.subtle.importKey(
    "pkcs8",
    await readPem(certificate.keyFile),
    algorithm,
    false,
    ["sign"],
  );
  const header = {
    typ: "JWT",
    alg: "ES256",
    x5c: [(await readPem(certificate.certFile)).toBase64()],
  };
  return async (access: Scope[]): Promise<string> => {
    const now = Math.floor(Date.now() / 1000);
    const claims = {
      iss: ISSUER,
      aud: SERVICE,
      sub: "",
      jti: crypto.randomUUID(),
      iat: now,
      nbf: now - 10,
      exp: now + 300,
      access,
    };
    const utf8 = new TextEncoder();
    const text = [header, claims]
      .map((part) => base64url(utf8.encode(JSON.stringify(part)))).join(".");
    const signature = await crypto.subtle
      .sign(algorithm, key, utf8.encode(text));
    return `${text}.${base64url(new Uint8Array(signature))}`;
  };
}

function base64url(bytes: Uint8Array): string {
  return bytes.toBase64({ alphabet: "base64url", omitPadding: true });
}

function refusalResponse(
  status: number,
  code: string,
  message: string,
): Response {
  return Response.json({ errors: [{ code, message }] }, { status });
}
