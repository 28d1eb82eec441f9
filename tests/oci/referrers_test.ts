import { assertEquals } from "@std/assert";
import { registryEndpoint } from "../../lib/oci/endpoints.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { fetchAttachedFiles } from "../../lib/oci/referrers.ts";
import { sha256OfBytes, sha256ToDigest } from "../../lib/system/digest.ts";

const TYPE = "application/vnd.example";

Deno.test("fetchAttachedFiles() requests a token once for all requests of an endpoint", async () => {
  const file = new TextEncoder().encode("attached");
  const encode = (value: unknown) =>
    new TextEncoder().encode(JSON.stringify(value));
  const describe = async (bytes: Uint8Array<ArrayBuffer>) => {
    const digest = sha256ToDigest(await sha256OfBytes(bytes));
    const size = bytes.length;
    return { digest, size, mediaType: TYPE, artifactType: TYPE };
  };
  const layer = await describe(file);
  const manifest = encode({ layers: [layer] });
  const attached = await describe(manifest);
  const of = `sha256:${"ab".repeat(32)}` as const;
  const files: Record<string, Uint8Array<ArrayBuffer>> = {
    [`/v2/o/i/manifests/${of.replace(":", "-")}`]: encode({
      manifests: [attached],
    }),
    [`/v2/o/i/manifests/${attached.digest}`]: manifest,
    [`/v2/o/i/blobs/${layer.digest}`]: file,
    "/token": encode({ token: "secret" }),
  };
  const requested: string[] = [];
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    ({ url, headers }) => {
      const { pathname, host } = new URL(url);
      requested.push(pathname);
      const isPublic = pathname === "/token" || headers.has("authorization");
      const challenge = `Bearer realm="http://${host}/token",service="x"`;
      if (!isPublic) {
        const headers = { "www-authenticate": challenge };
        return new Response(null, { status: 401, headers });
      }
      const body = files[pathname];
      return new Response(body ?? null, { status: body ? 200 : 404 });
    },
  );
  const reference = parseReference(`127.0.0.1:${server.addr.port}/o/i:1`);
  const kind = { type: TYPE, maxBytes: 100 };
  const found = fetchAttachedFiles(registryEndpoint(reference, {}), of, kind);
  assertEquals(await Array.fromAsync(found), [file]);
  assertEquals(requested.filter((path) => path === "/token").length, 1);
});
