/**
 * A reverse proxy on loopback that injects faults of networks and overloaded
 * registries into a registry's responses.
 */

/** What the proxy does to a response; one of these. */
export type FaultAction =
  /** An error in the form of the OCI specification. */
  | { status: number; headers?: Record<string, string> }
  /** Breaks the connection after so many bytes of the body. */
  | { cutAfter: number }
  /** Stalls after so many bytes of the body. */
  | { stallAfter: number }
  /** Sends one byte at a time after so many bytes of the body. */
  | { dripAfter: number }
  /** Never answers. */
  | { hang: true }
  /** Replaces the body. */
  | { replace: (body: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer> }
  /** Answers with the registry's response for another path. */
  | { askFor: string }
  /** Replaces the registry's authentication challenge. */
  | { challenge: (own: string) => string };

/** A fault, and the requests that it applies to. */
export type ProxyFault = FaultAction & {
  /** Tested on {@linkcode SeenRequest}'s `request`. */
  match: RegExp;
  /** How many matching requests are skipped first. @default {0} */
  after?: number;
  /** How many requests it applies to. @default {Infinity} */
  times?: number;
};

export interface SeenRequest {
  /**
   * Method, path and query, as in `GET /v2/owner/image/manifests/v1`; in the
   * query `:` is `%3A`, as clients send it.
   */
  request: string;
  /** The response's status; 0 before it arrives. */
  status: number;
  /** Bytes of the body forwarded so far. */
  bytes: number;
}

/** A running proxy. */
export interface FaultyProxy extends AsyncDisposable {
  /** Address and port, for references. */
  readonly host: string;
  /** The faults; the first match wins. May be changed. */
  readonly faults: ProxyFault[];
  /** The requests so far, in order. */
  readonly seen: SeenRequest[];
}

/**
 * Starts a proxy in front of a registry that speaks plain HTTP.
 *
 * @param upstream The registry's address and port.
 * @param faults The faults; none by default.
 * @returns The running proxy, to be disposed of.
 * @example A download that breaks once
 * ```ts ignore
 * await using proxy = startProxy(registry.host, [
 *   { match: /^GET .*\/blobs\//, cutAfter: 1000, times: 1 },
 * ]);
 * ```
 */
export function startProxy(
  upstream: string,
  faults: ProxyFault[] = [],
): FaultyProxy {
  const seen: SeenRequest[] = [];
  const counts = new Map<ProxyFault, number>();
  const closing = new AbortController();

  function befalling(request: string): ProxyFault | undefined {
    return faults.find((fault) => {
      if (!fault.match.test(request)) return false;
      const count = counts.get(fault) ?? 0;
      counts.set(fault, count + 1);
      const { after = 0, times = Infinity } = fault;
      return count >= after && count < after + times;
    });
  }

  /** Forwards a request; the registry must name the proxy in its URLs. */
  function forward(
    request: Request,
    url: URL,
    method: string,
  ): Promise<Response> {
    const headers = new Headers(request.headers);
    headers.set("x-forwarded-host", url.host);
    url.host = upstream;
    return fetch(url, {
      method,
      headers,
      body: request.body,
      redirect: "manual",
      signal: closing.signal,
    });
  }

  async function answer(request: Request, asked: string): Promise<Response> {
    const fault = befalling(asked);
    if (fault && "hang" in fault) {
      await whenAborted(closing.signal);
    }
    if (fault && "status" in fault) {
      await request.body?.cancel();
      return refusalResponse(fault);
    }
    const replacing = fault && "replace" in fault;
    // A HEAD response must have the length and digest of the GET.
    const method = replacing ? "GET" : request.method;
    const url = new URL(request.url);
    if (fault && "askFor" in fault) url.pathname = fault.askFor;
    const response = await forward(request, url, method);
    if (replacing) return await replacedBody(request, response, fault.replace);
    const { body, status } = response;
    const headers = new Headers(response.headers);
    const own = headers.get("www-authenticate");
    if (fault && "challenge" in fault && own !== null) {
      headers.set("www-authenticate", fault.challenge(own));
    }
    if (body && fault && "dripAfter" in fault) {
      const slow = drip(body, fault.dripAfter, closing.signal);
      return new Response(ReadableStream.from(slow), { status, headers });
    }
    const limit = fault && "cutAfter" in fault
      ? fault.cutAfter
      : fault && "stallAfter" in fault
      ? fault.stallAfter
      : Infinity;
    const passed = body && limitedBody(body, limit, async () => {
      if (fault && "stallAfter" in fault) await whenAborted(closing.signal);
      throw new Error("The connection is cut");
    });
    return new Response(passed, { status, headers });
  }

  const server = Deno.serve({
    hostname: "127.0.0.1",
    port: 0,
    signal: closing.signal,
    onListen: () => {},
    onError: () => new Response(null, { status: 502 }),
  }, async (request) => {
    const { pathname, search } = new URL(request.url);
    const entry: SeenRequest = {
      request: `${request.method} ${pathname}${search}`,
      status: 0,
      bytes: 0,
    };
    seen.push(entry);
    const response = await answer(request, entry.request);
    entry.status = response.status;
    const body = response.body?.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({
        transform(chunk, controller) {
          entry.bytes += chunk.length;
          controller.enqueue(chunk);
        },
      }),
    );
    return new Response(body, response);
  });
  return {
    host: `127.0.0.1:${server.addr.port}`,
    faults,
    seen,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await server.finished;
    },
  };
}

/** Forwards so many bytes, then ends in the given way. */
function limitedBody(
  body: ReadableStream<Uint8Array>,
  limit: number,
  end: () => Promise<never>,
): ReadableStream<Uint8Array> {
  const reader = body.getReader();
  let left = limit;
  return new ReadableStream({
    async pull(controller) {
      if (left <= 0) {
        await reader.cancel();
        await end();
      }
      const { done, value } = await reader.read();
      if (done) return controller.close();
      controller.enqueue(value.subarray(0, left));
      left -= value.length;
    },
    cancel: (reason) => reader.cancel(reason),
  });
}

/** Yields so many bytes as they come, then each alone. */
async function* drip(
  body: ReadableStream<Uint8Array>,
  limit: number,
  signal: AbortSignal,
) {
  for await (const chunk of body) {
    const whole = Math.min(limit, chunk.length);
    if (whole > 0) yield chunk.subarray(0, whole);
    limit -= whole;
    for (let at = whole; at < chunk.length; at++) {
      signal.throwIfAborted();
      yield chunk.subarray(at, at + 1);
      await new Promise((done) => setTimeout(done, 20));
    }
  }
}

/** Replaces the body and adapts the headers, so that only the digest differs. */
async function replacedBody(
  request: Request,
  response: Response,
  change: (body: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>,
): Promise<Response> {
  const body = change(await response.bytes());
  const headers = new Headers(response.headers);
  headers.set("content-length", String(body.length));
  // Under a tag, only who pushed can detect replaced content.
  if (/\/manifests\/[^:]+$/.test(request.url)) {
    const digest = await crypto.subtle.digest("SHA-256", body);
    headers.set(
      "docker-content-digest",
      `sha256:${new Uint8Array(digest).toHex()}`,
    );
  }
  return new Response(body, { status: response.status, headers });
}

function refusalResponse(
  { status, headers }: { status: number; headers?: Record<string, string> },
): Response {
  const code = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NOT_FOUND",
    429: "TOOMANYREQUESTS",
  }[status] ?? "UNAVAILABLE";
  const errors = [{ code, message: `the test says ${status}` }];
  return Response.json({ errors }, { status, headers });
}

function whenAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
