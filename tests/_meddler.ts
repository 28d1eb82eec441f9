/**
 * A proxy in front of a registry that answers some requests itself, or turns
 * them into others.
 *
 * @module
 */

/** A running proxy. */
export interface Meddler extends AsyncDisposable {
  /** Its host and port. */
  host: string;
}

/**
 * Decides on a request: the answer to give, or nothing to pass it on to the
 * address, which it may change.
 */
export type Meddle = (
  request: Request,
  url: URL,
) => Response | undefined | void | Promise<Response | undefined | void>;

/** Starts a proxy. */
export function startMeddler(registry: string, meddle: Meddle): Meddler {
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      const url = new URL(request.url);
      const answer = await meddle(request, url);
      if (answer) return answer;
      const headers = new Headers(request.headers);
      // The registry names this host in the addresses that it hands out.
      headers.set("x-forwarded-host", url.host);
      url.host = registry;
      const response = await fetch(url, {
        method: request.method,
        headers,
        body: request.body,
        redirect: "manual",
      });
      return new Response(response.body, {
        status: response.status,
        headers: response.headers,
      });
    },
  );
  return {
    host: `127.0.0.1:${server.addr.port}`,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}
