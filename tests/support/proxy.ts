/**
 * A reverse proxy on loopback that does to a registry's answers what networks
 * and overloaded registries do to them.
 *
 * @module
 */

/** What goes wrong: one of these. */
export type Mischief =
  /** An error in the form of the OCI specification. */
  | { status: number; headers?: Record<string, string> }
  /** The connection breaks after so many bytes of the body. */
  | { cutAfter: number }
  /** Nothing more comes after so many bytes of the body. */
  | { stallAfter: number }
  /** No answer at all. */
  | { hang: true }
  /** Other bytes than the registry's. */
  | { replace: (body: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer> }
  /** The registry's answer to another path than the one asked for. */
  | { askFor: string }
  /** Another challenge than the registry's, where it has one. */
  | { challenge: (own: string) => string };

/** A fault, and the requests that it befalls. */
export type Fault = Mischief & {
  /** Is tried on what {@linkcode Seen} has as the request. */
  match: RegExp;
  /** How many of those are spared at first. @default {0} */
  after?: number;
  /** How many it befalls then. @default {Infinity} */
  times?: number;
};

/** A request that the proxy has seen. */
export interface Seen {
  /**
   * Method, path and query, as in `GET /v2/owner/image/manifests/v1`; in the
   * query `:` is `%3A`, as clients send it.
   */
  request: string;
  /** Status of the answer; 0 while there is none. */
  status: number;
  /** Bytes of the body that were handed on so far. */
  bytes: number;
}

/** A running proxy. */
export interface FaultyProxy extends AsyncDisposable {
  /** Address and port: what a reference begins with. */
  readonly host: string;
  /** The faults; the first that befalls a request wins. May be changed. */
  readonly faults: Fault[];
  /** What was asked so far, in order. */
  readonly seen: Seen[];
}

/**
 * Starts a proxy in front of a registry that speaks plain HTTP.
 *
 * @param upstream The registry's address and port.
 * @param faults What goes wrong; nothing when left out.
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
  faults: Fault[] = [],
): FaultyProxy {
  const seen: Seen[] = [];
  const counts = new Map<Fault, number>();
  const closing = new AbortController();

  function befalling(request: string): Fault | undefined {
    return faults.find((fault) => {
      if (!fault.match.test(request)) return false;
      const count = counts.get(fault) ?? 0;
      counts.set(fault, count + 1);
      const { after = 0, times = Infinity } = fault;
      return count >= after && count < after + times;
    });
  }

  /** Asks the registry, which is to name the proxy in addresses it hands out. */
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
      await aborted(closing.signal);
    }
    if (fault && "status" in fault) {
      await request.body?.cancel();
      return refusal(fault);
    }
    const replacing = fault && "replace" in fault;
    // A HEAD must tell the length and digest that the GET would have.
    const method = replacing ? "GET" : request.method;
    const url = new URL(request.url);
    if (fault && "askFor" in fault) url.pathname = fault.askFor;
    const response = await forward(request, url, method);
    if (replacing) return await replaced(request, response, fault.replace);
    const { body, status } = response;
    const headers = new Headers(response.headers);
    const own = headers.get("www-authenticate");
    if (fault && "challenge" in fault && own !== null) {
      headers.set("www-authenticate", fault.challenge(own));
    }
    const limit = fault && "cutAfter" in fault
      ? fault.cutAfter
      : fault && "stallAfter" in fault
      ? fault.stallAfter
      : Infinity;
    const passed = body && limited(body, limit, async () => {
      if (fault && "stallAfter" in fault) await aborted(closing.signal);
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
    const entry: Seen = {
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

/** Hands on so many bytes, then does what ends them. */
function limited(
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

/** Other bytes, with headers that fit them: only their digest tells. */
async function replaced(
  request: Request,
  response: Response,
  change: (body: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>,
): Promise<Response> {
  const body = change(await response.bytes());
  const headers = new Headers(response.headers);
  headers.set("content-length", String(body.length));
  // Under a tag other content is a lie that only who pushed can see through.
  if (/\/manifests\/[^:]+$/.test(request.url)) {
    const digest = await crypto.subtle.digest("SHA-256", body);
    headers.set(
      "docker-content-digest",
      `sha256:${new Uint8Array(digest).toHex()}`,
    );
  }
  return new Response(body, { status: response.status, headers });
}

function refusal(
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

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
