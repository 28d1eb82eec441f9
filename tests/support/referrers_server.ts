/**
 * Serves the files that are attached to one artifact on loopback, as a registry with or
 * without the referrers API does, and counts requests.
 */
import type { Endpoint } from "../../lib/oci/endpoints.ts";
import { BUNDLE_TYPE } from "./sigstore.ts";

/** What {@linkcode startReferrersServer} takes. */
export interface ReferrersServerOptions {
  /** Digest of the artifact's manifest. */
  digest: string;
  /** The attached files: JSON values, or texts. */
  files: unknown[];
  /** Lists them by the referrers API, or under the fallback tag. @default {"api"} */
  listedBy?: "api" | "tag";
  /** Answers a request instead; `undefined` for the correct response. */
  answer?: (path: string) => Response | undefined;
}

/** A running server. */
export interface ReferrersServer extends AsyncDisposable {
  endpoint: Endpoint;
  /** The paths of the requests so far, below the repository. */
  requested: string[];
}

/** Starts a server. */
export async function startReferrersServer(
  { digest, files, listedBy = "api", answer }: ReferrersServerOptions,
): Promise<ReferrersServer> {
  const served = new Map<string, Uint8Array<ArrayBuffer>>();
  const add = async (kind: string, value: unknown) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const bytes = new TextEncoder().encode(text);
    const hash = await crypto.subtle.digest("SHA-256", bytes);
    const digest = `sha256:${new Uint8Array(hash).toHex()}`;
    served.set(`${kind}/${digest}`, bytes);
    return { digest, size: bytes.length };
  };
  const manifests = [];
  for (const file of files) {
    const layer = { mediaType: BUNDLE_TYPE, ...await add("blobs", file) };
    const mediaType = "application/vnd.oci.image.manifest.v1+json";
    const artifactType = BUNDLE_TYPE;
    const manifest = { schemaVersion: 2, mediaType, artifactType };
    const added = await add("manifests", { ...manifest, layers: [layer] });
    manifests.push({ mediaType, artifactType, ...added });
  }
  const index = new TextEncoder().encode(JSON.stringify({ manifests }));
  served.set(
    listedBy === "api"
      ? `referrers/${digest}`
      : `manifests/${digest.replace(":", "-")}`,
    index,
  );
  const requested: string[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    ({ url }) => {
      const { pathname, searchParams } = new URL(url);
      const path = pathname.replace(/^\/v2\/owner\/image\//, "");
      requested.push(path);
      const type = searchParams.get("artifactType") ?? BUNDLE_TYPE;
      const bytes = type === BUNDLE_TYPE ? served.get(path) : undefined;
      return answer?.(path) ??
        new Response(bytes ?? null, { status: bytes ? 200 : 404 });
    },
  );
  const host = `127.0.0.1:${server.addr.port}`;
  return {
    requested,
    endpoint: {
      baseUrl: `http://${host}/v2`,
      host,
      repository: "owner/image",
      resolvesTags: true,
      options: { env: { get: () => undefined } },
    },
    async [Symbol.asyncDispose]() {
      await server.shutdown();
    },
  };
}
