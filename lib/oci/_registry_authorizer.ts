/**
 * Authorizes requests to a registry, with Basic or with tokens from its token
 * service.
 *
 * Formats: the distribution project's "Token Authentication" and "OAuth2 Token
 * Authentication".
 */
import { readLimitedBody } from "../system/http_body.ts";
import type { HttpRequestInit } from "../system/http_client.ts";
import { httpStatusError } from "../system/http_errors.ts";
import { redirectRefusalReason } from "../system/redirects.ts";
import { isTransientError } from "../system/retry.ts";
import { startStallTimer } from "../system/stall_timer.ts";
import type { Deadline } from "../system/time.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import { type Login, mayReceiveSecrets } from "./ghcr_credentials.ts";
import {
  type AuthChallenge,
  chooseAuthChallenge,
  parseAuthChallenges,
} from "./_auth_challenges.ts";
import {
  readRegistryCredentials,
  type RegistryCredentials,
} from "./_docker_config.ts";
import type { RegistryOptions } from "./registry_options.ts";

export interface AuthorizedRepository {
  baseUrl: string;
  /** Host and optional port, the key of its credentials. */
  host: string;
  repository: string;
  options: RegistryOptions;
  /** Called with what each 401 offers; may throw to send no credentials. */
  onChallenge?: (offered: AuthChallenge[]) => void;
}

const MAX_TOKEN_RESPONSE_BYTES = 128 * 1024;
/** The specification's default. */
const DEFAULT_TOKEN_LIFETIME_S = 60;

/**
 * Provides the `Authorization` header for one registry. Sends no credentials before the
 * registry's challenge, and only to the registry and its token service. `sendRequest`
 * follows no redirects. Throws {@linkcode RangesUnavailableError} if it cannot answer
 * the challenge.
 */
export function registryAuthorizer(
  { baseUrl, host, repository, options, onChallenge }: AuthorizedRepository,
  sendRequest: (url: URL, request: HttpRequestInit) => Promise<Response>,
  readCredentials = readRegistryCredentials,
) {
  const registryUrl = new URL(baseUrl);
  const mayLogIn = mayReceiveSecrets(registryUrl);
  let credentials: Promise<RegistryCredentials> | undefined;
  /** The last challenge that had a supported scheme. */
  let challengeText = "";
  let value: string | undefined;
  let expiresAt = Infinity;
  let renewal: Promise<void> | undefined;

  /** Concurrent requests share one renewal. */
  const renew = (text: string) =>
    renewal ??= answerChallenge(text).finally(() => renewal = undefined);

  async function answerChallenge(text: string) {
    const offered = parseAuthChallenges(text);
    onChallenge?.(offered);
    const { scheme, params } = chooseAuthChallenge(offered);
    challengeText = text;
    credentials ??= mayLogIn
      ? readCredentials(host, options)
      : Promise.resolve({});
    const found = await credentials;
    if (scheme === "bearer") {
      const { token, lifeMs } = await getToken(params, found);
      value = `Bearer ${token}`;
      // Early, so that the token is still valid when a request arrives.
      expiresAt = performance.now() + lifeMs * 0.9;
      return;
    }
    if (!mayLogIn) throw credentialsNotSentError(registryUrl);
    if (!found.login) {
      const why = `no user name and password for ${registryUrl.host}`;
      throw new RangesUnavailableError(why);
    }
    value = basicAuthorization(found.login);
  }

  async function getToken(
    params: Map<string, string>,
    { registryToken, identityToken, login }: RegistryCredentials,
  ) {
    if (registryToken) return { token: registryToken, lifeMs: Infinity };
    const realm = URL.parse(params.get("realm") ?? "");
    if (!realm) {
      const why = "the registry names no token service URL";
      throw new RangesUnavailableError(why);
    }
    using timer = startStallTimer(`download ${realm.host}`, options);
    const { signal } = timer;
    // A token service is like a redirect, so the same policy applies.
    const policy = { requestedUrl: registryUrl, signal };
    const refusal = await redirectRefusalReason(realm, policy);
    if (refusal) {
      const why =
        `refused token service ${realm.protocol}//${realm.host}, ${refusal}`;
      throw new RangesUnavailableError(why);
    }
    if ((identityToken || login) && !mayReceiveSecrets(realm)) {
      throw credentialsNotSentError(realm);
    }
    const service = params.get("service");
    const scope = params.get("scope") || `repository:${repository}:pull`;
    let request: RequestInit = {};
    if (identityToken) {
      const body = new URLSearchParams({
        grant_type: "refresh_token",
        refresh_token: identityToken,
        client_id: "toolsmith",
        scope,
      });
      if (service) body.set("service", service);
      request = { method: "POST", body };
    } else {
      if (service) realm.searchParams.set("service", service);
      for (const one of scope.split(" ")) {
        realm.searchParams.append("scope", one);
      }
      if (login) request.headers = { authorization: basicAuthorization(login) };
    }
    const response = await sendRequest(realm, { ...request, signal });
    if (response.status === 401 && !mayLogIn) {
      await response.body?.cancel();
      throw credentialsNotSentError(registryUrl);
    }
    return await readTokenResponse(response, realm.host, timer);
  }

  return {
    /**
     * Returns the current value. First renews a token that is about to expire, because
     * some registries answer an expired one with another status than 401, or without a
     * challenge.
     */
    async header(): Promise<string | undefined> {
      if (performance.now() > expiresAt) await renew(challengeText);
      return value;
    },
    /**
     * Gets a new value after a 401 with the `WWW-Authenticate` header `text`, unless
     * another request has already renewed the rejected value `sent`.
     */
    async renewAfter401(text: string | null, sent?: string): Promise<void> {
      if (renewal || sent === value) await renew(text ?? "");
    },
  };
}

function credentialsNotSentError({ origin }: URL): RangesUnavailableError {
  const why = `credentials are not sent over plain HTTP to ${origin}`;
  return new RangesUnavailableError(why);
}

async function readTokenResponse(
  response: Response,
  host: string,
  timer: Deadline,
) {
  const { status, body } = response;
  if (status !== 200) {
    await body?.cancel();
    const error = httpStatusError(response, host);
    if (isTransientError(error)) throw error;
    const why = `the token service ${host} answered ${status}`;
    throw new RangesUnavailableError(why);
  }
  const limits = { shown: host, limit: MAX_TOKEN_RESPONSE_BYTES };
  const bytes = await readLimitedBody(body, timer, limits);
  try {
    const answer = JSON.parse(new TextDecoder().decode(bytes));
    const token = answer?.access_token || answer?.token;
    // No line breaks: the token becomes part of a header.
    if (typeof token === "string" && /^[\x21-\x7e]+$/.test(token)) {
      const seconds = Number(answer.expires_in) || DEFAULT_TOKEN_LIFETIME_S;
      return { token, lifeMs: Math.max(seconds, 1) * 1000 };
    }
  } catch {
    // Not JSON.
  }
  throw new RangesUnavailableError(`token service ${host} sent no valid token`);
}

function basicAuthorization({ user, password }: Login): string {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  return `Basic ${bytes.toBase64()}`;
}
