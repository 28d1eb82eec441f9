/** A registry on loopback that serves whatever bytes a test gives it. */

/** What is served under a tag or digest. */
export interface ServedManifest {
  /** The bytes. */
  bytes: Uint8Array<ArrayBuffer>;
  /** The `Content-Type` of each answer in turn; the last stays. */
  contentTypes: string[];
}

/** A running registry. */
export interface HostileRegistry extends AsyncDisposable {
  /** Address and port, for references. */
  readonly host: string;
  /** Every request so far, as `GET /v2/…`. */
  readonly requests: string[];
  /** Serves a manifest under a tag and its digest; returns the digest. */
  manifest(
    tag: string,
    content: unknown,
    contentTypes?: string[],
  ): Promise<string>;
  /** Serves a blob; returns its descriptor. */
  blob(
    bytes: Uint8Array<ArrayBuffer>,
    fields?: Record<string, unknown>,
  ): Promise<Record<string, unknown>>;
  /** Stops answering requests for blobs. */
  holdBlobs(): void;
  /** Redirects each request for a blob. */
  redirectBlobs(location: string): void;
}

/** The media type of an OCI image manifest. */
export const IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json";

/**
 * Starts an empty registry.
 *
 * @param tls Its certificate, to serve HTTPS.
 */
export function startHostileRegistry(
  tls: { cert?: string; key?: string } = {},
): HostileRegistry {
  const manifests = new Map<string, ServedManifest>();
  const blobs = new Map<string, Uint8Array<ArrayBuffer>>();
  const requests: string[] = [];
  const end = Promise.withResolvers<void>();
  let holding = false;
  let location: string | undefined;
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {}, ...tls },
    async ({ method, url }) => {
      const { pathname } = new URL(url);
      requests.push(`${method} ${pathname}`);
      const [, kind, name] = /\/(manifests|blobs)\/([^/]+)$/.exec(pathname) ??
        [];
      if (holding && kind === "blobs") await end.promise;
      if (location !== undefined && kind === "blobs") {
        return new Response(null, { status: 307, headers: { location } });
      }
      const headers = new Headers();
      let bytes = blobs.get(name);
      if (kind === "manifests") {
        const served = manifests.get(name);
        bytes = served?.bytes;
        const types = served?.contentTypes ?? [];
        const type = types.length > 1 ? types.shift() : types[0];
        headers.set("content-type", type ?? IMAGE_MANIFEST);
      }
      if (!kind) return new Response(null, { status: 200 });
      if (!bytes) return new Response(null, { status: 404 });
      headers.set("docker-content-digest", await digestOf(bytes));
      headers.set("content-length", String(bytes.length));
      return new Response(method === "HEAD" ? null : bytes, { headers });
    },
  );
  return {
    host: `127.0.0.1:${server.addr.port}`,
    requests,
    async manifest(tag, content, contentTypes = [IMAGE_MANIFEST]) {
      const text = typeof content === "string"
        ? content
        : JSON.stringify(content);
      const bytes = new TextEncoder().encode(text);
      const digest = await digestOf(bytes);
      const served = { bytes, contentTypes };
      manifests.set(tag, served);
      manifests.set(digest, served);
      return digest;
    },
    async blob(bytes, fields = {}) {
      const digest = await digestOf(bytes);
      blobs.set(digest, bytes);
      const mediaType = "application/octet-stream";
      return { mediaType, digest, size: bytes.length, ...fields };
    },
    holdBlobs() {
      holding = true;
    },
    redirectBlobs(to) {
      location = to;
    },
    [Symbol.asyncDispose]() {
      end.resolve();
      return server.shutdown();
    },
  };
}

async function digestOf(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return `sha256:${new Uint8Array(digest).toHex()}`;
}
