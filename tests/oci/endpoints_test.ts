import { assertEquals } from "@std/assert";
import {
  findEndpoints,
  registryEndpoint,
  repositoryClient,
} from "../../lib/oci/endpoints.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { requires } from "../support/parts.ts";

Deno.test("registryEndpoint() uses HTTPS, and plain HTTP only for loopback hosts or with plainHttp", () => {
  const bases: [string, object, string][] = [
    ["ghcr.io/o/vm:1", {}, "https://ghcr.io/v2"],
    ["ghcr.io/o/vm:1", { plainHttp: true }, "http://ghcr.io/v2"],
    ["docker.io/o/vm:1", {}, "https://registry-1.docker.io/v2"],
    ["localhost:5000/o/vm:1", {}, "http://localhost:5000/v2"],
    [
      "localhost:5000/o/vm:1",
      { plainHttp: false },
      "https://localhost:5000/v2",
    ],
    ["localhost:5000/o/vm:1", { caFile: "a" }, "https://localhost:5000/v2"],
  ];
  for (const [text, registry, baseUrl] of bases) {
    const endpoint = registryEndpoint(parseReference(text), registry);
    assertEquals(endpoint.baseUrl, baseUrl, text);
    assertEquals(endpoint.host, text.split("/")[0]);
    assertEquals([endpoint.repository, endpoint.resolvesTags], ["o/vm", true]);
    assertEquals([endpoint.query, endpoint.options], [undefined, registry]);
  }
});

Deno.test("findEndpoints() gives each mirror the ns query parameter and only its own CA file", async () => {
  await using dir = await temporaryDir();
  await Deno.mkdir(`${dir.path}/reg.example_5000_`);
  await Deno.writeTextFile(
    `${dir.path}/reg.example_5000_/hosts.toml`,
    '[host."https://a.lan:1"]\ncapabilities = ["pull"]\nca = "/a.pem"\n' +
      '[host."http://b.lan"]\n[host."ftp://c.lan"]\nclient = "x"\n',
  );
  const env = new Map([["TOOLSMITH_REGISTRY_CONFIG", dir.path]]);
  const options = { caFile: "registry.pem", stallTimeoutMs: 7, env };
  const shared = {
    ...{ query: "ns=reg.example%3A5000", repository: "o/vm", options },
  };
  const warnings: string[] = [];
  const reference = parseReference("reg.example:5000/o/vm:1");
  const found = await findEndpoints(
    reference,
    options,
    (message) => warnings.push(message),
  );
  assertEquals(found.mirrors, [
    {
      ...shared,
      ...{ baseUrl: "https://a.lan:1/v2", host: "a.lan:1" },
      ...{ resolvesTags: false, caFile: "/a.pem" },
    },
    {
      ...shared,
      ...{ baseUrl: "http://b.lan/v2", host: "b.lan" },
      ...{ resolvesTags: true, caFile: undefined },
    },
  ]);
  assertEquals(found.registry, registryEndpoint(reference, options));
  assertEquals(warnings.length, 1);
});

Deno.test({
  name:
    "repositoryClient() sends the endpoint's own credentials and does not negotiate HTTP/2",
  ...requires("openssl"),
  async fn() {
    await using dir = await temporaryDir();
    const { certFile, keyFile, caFile } = await issueCertificate(dir.path);
    const seen: (string | null)[] = [];
    const listener = Deno.listenTls({
      hostname: "127.0.0.1",
      port: 0,
      cert: await Deno.readTextFile(certFile),
      key: await Deno.readTextFile(keyFile),
      alpnProtocols: ["h2", "http/1.1"],
    });
    const host = `127.0.0.1:${listener.addr.port}`;
    const served = (async () => {
      for await (const connection of listener) {
        const { alpnProtocol } = await connection.handshake();
        const bytes = new Uint8Array(4096);
        const count = await connection.read(bytes);
        const text = new TextDecoder().decode(bytes.subarray(0, count ?? 0));
        const known = /^authorization: (.*)\r$/im.exec(text)?.[1];
        seen.push(alpnProtocol, known ?? null);
        const answer = known === undefined
          ? "401 Unauthorized\r\nwww-authenticate: Basic realm=x"
          : "200 OK";
        const head = `HTTP/1.1 ${answer}\r\ncontent-length: 0\r\n`;
        await connection.write(
          new TextEncoder().encode(`${head}connection: close\r\n\r\n`),
        );
        connection.close();
      }
    })();
    const auths = { [host]: { auth: btoa("me:secret") } };
    await Deno.writeTextFile(
      `${dir.path}/config.json`,
      JSON.stringify({ auths }),
    );
    const env = new Map([["DOCKER_CONFIG", dir.path]]);
    const endpoint = {
      ...{
        baseUrl: `https://${host}/v2`,
        query: "ns=reg.example",
        host,
        caFile,
      },
      ...{ repository: "o/vm", resolvesTags: true, options: { env } },
    };
    {
      using repository = await repositoryClient(endpoint, 2);
      const { signal } = new AbortController();
      const [{ status, body }, url] = await repository
        .get("manifests/1", { headers: {}, signal });
      await body?.cancel();
      assertEquals(status, 200);
      assertEquals(
        url.href,
        `https://${host}/v2/o/vm/manifests/1?ns=reg.example`,
      );
    }
    listener.close();
    await served.catch(() => {});
    const login = `Basic ${btoa("me:secret")}`;
    assertEquals(seen, ["http/1.1", null, "http/1.1", login]);
  },
});
