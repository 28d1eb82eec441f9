/**
 * Says to a registry who asks: Basic, or tokens from its token service.
 *
 * Formats: the distribution project's "Token Authentication" and "OAuth2 Token
 * Authentication".
 *
 * @module
 */
import type { HttpRequest } from "../system/http_client.ts";
import { statusError } from "../system/http_errors.ts";
import { watchStall } from "../system/http_stall.ts";
import { whyRefused } from "../system/redirects.ts";
import { isTransient } from "../system/retry.ts";
import { abortableChunks, readAtMost } from "../system/streams.ts";
import { mayCarrySecrets } from "./credentials.ts";
import {
  chooseChallenge,
  type KnownChallenge,
  parseChallenges,
} from "./_challenges.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import type { RegistryCredentials } from "./_docker_config.ts";

/** Sends a request without following redirects. */
type Send = (url: URL, request: HttpRequest) => Promise<Response>;

/** What {@linkcode authorizer} takes. */
export interface AuthorizerOptions {
  /** The repository to be read. */
  repository: string;
  /** The registry's address. */
  home: URL;
  /** Finds the credentials; called once, and not before they are needed. */
  credentials: () => Promise<RegistryCredentials>;
  /** Sends requests to the token service. */
  send: Send;
  /** Ends them when aborted. @default {undefined} */
  signal?: AbortSignal;
  /** Time after which they are aborted, in milliseconds. */
  stallMs: number;
}

/** What to send to one registry as `Authorization`. */
export interface Authorizer {
  /** The value by now; a token that is about to expire is renewed before. */
  header(): Promise<string | undefined>;
  /**
   * Finds another value after a 401.
   *
   * @param challenge The answer's `WWW-Authenticate`.
   * @param sent What was sent; another request may have found a newer one.
   */
  renew(challenge: string | null, sent: string | undefined): Promise<void>;
}

const MAX_ANSWER = 128 * 1024;
/** The specification's, where the service names none. */
const DEFAULT_LIFE_S = 60;

/**
 * Makes what authorizes requests to one registry. Nothing is sent until the
 * registry has asked for it; credentials go to its token service alone.
 *
 * @param options The repository, its credentials, and how to send.
 * @returns The authorizer; it throws {@linkcode RangesUnavailable} where the
 * registry cannot be satisfied.
 */
export function authorizer(options: AuthorizerOptions): Authorizer {
  let credentials: Promise<RegistryCredentials> | undefined;
  let challenge: KnownChallenge | undefined;
  let value: string | undefined;
  let expires = Infinity;
  let renewal: Promise<void> | undefined;

  async function obtain(known: KnownChallenge) {
    const { home } = options;
    const may = mayCarrySecrets(home);
    credentials ??= may ? options.credentials() : Promise.resolve({});
    const found = await credentials;
    if (known.scheme === "basic") {
      if (!may) throw notSent(home);
      if (!found.login) throw new RangesUnavailable("no credentials for it");
      value = basic(found.login);
      return;
    }
    const { token, lifeMs } = await bearerToken(known, found, options);
    value = `Bearer ${token}`;
    // Renewed a little before: the request has to get there.
    expires = performance.now() + lifeMs * 0.9;
  }

  /** Many connections find out at once, and one of them asks. */
  function obtainOnce(known: KnownChallenge): Promise<void> {
    renewal ??= obtain(known).finally(() => renewal = undefined);
    return renewal;
  }

  return {
    async header() {
      if (challenge && performance.now() > expires) await obtainOnce(challenge);
      return value;
    },
    async renew(text, sent) {
      if (renewal) return await renewal;
      if (sent !== value) return;
      challenge = chooseChallenge(parseChallenges(text ?? ""));
      await obtainOnce(challenge);
    },
  };
}

async function bearerToken(
  { params }: KnownChallenge,
  credentials: RegistryCredentials,
  { repository, home, send, signal: given, stallMs }: AuthorizerOptions,
): Promise<{ token: string; lifeMs: number }> {
  const { registryToken, identityToken, login } = credentials;
  if (registryToken) return { token: registryToken, lifeMs: Infinity };
  const realm = URL.parse(params.get("realm") ?? "");
  if (!realm) throw new RangesUnavailable("its token service has no address");
  using watch = watchStall(realm.host, stallMs, given);
  const { signal } = watch;
  // The registry names it: a redirect by another means.
  const why = await whyRefused(realm, { origin: home, signal });
  if (why) {
    const shown = `${realm.protocol}//${realm.host}`;
    throw new RangesUnavailable(`its token service is ${shown}, ${why}`);
  }
  if ((identityToken || login) && !mayCarrySecrets(realm)) throw notSent(realm);
  const service = params.get("service");
  const scope = params.get("scope") || `repository:${repository}:pull`;
  let response: Response;
  if (identityToken) {
    const form = new URLSearchParams({
      grant_type: "refresh_token",
      refresh_token: identityToken,
      client_id: "toolsmith",
      scope,
    });
    if (service) form.set("service", service);
    response = await send(realm, { method: "POST", body: form, signal });
  } else {
    if (service) realm.searchParams.set("service", service);
    for (const one of scope.split(" ")) realm.searchParams.append("scope", one);
    const headers: HeadersInit = login ? { authorization: basic(login) } : {};
    response = await send(realm, { headers, signal });
  }
  if (response.status === 401 && !mayCarrySecrets(home)) {
    await response.body?.cancel();
    throw notSent(home);
  }
  try {
    return await readToken(response, realm.host, signal);
  } catch (error) {
    throw watch.explain(error, true);
  }
}

function notSent({ origin }: URL): RangesUnavailable {
  return new RangesUnavailable(
    `credentials are not sent over plain HTTP, to ${origin}`,
  );
}

async function readToken(
  response: Response,
  host: string,
  signal: AbortSignal,
) {
  const { status, body } = response;
  if (status !== 200) {
    await body?.cancel();
    const error = statusError(response, host);
    if (isTransient(error)) throw error;
    throw new RangesUnavailable(`the token service ${host} answers ${status}`);
  }
  const bytes = body &&
    await readAtMost(abortableChunks(body, signal), MAX_ANSWER);
  try {
    const answer = JSON.parse(new TextDecoder().decode(bytes ?? undefined));
    const token = answer.access_token || answer.token;
    // Into a header goes nothing that could end it.
    if (typeof token === "string" && /^[\x21-\x7e]+$/.test(token)) {
      const seconds = Number(answer.expires_in) || DEFAULT_LIFE_S;
      return { token, lifeMs: Math.max(seconds, 1) * 1000 };
    }
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new RangesUnavailable(`the token service ${host} sent no token`);
}

function basic({ user, password }: { user: string; password: string }) {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  return `Basic ${bytes.toBase64()}`;
}
