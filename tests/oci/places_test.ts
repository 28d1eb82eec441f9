import { assertEquals } from "@std/assert";
import {
  mirrorPlaces,
  openPlace,
  registryPlace,
} from "../../lib/oci/_places.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs } from "../support/parts.ts";

const places = (text: string, registry = {}) => ({
  reference: parseReference(text),
  registry,
  mirrors: [],
});

Deno.test("a registry is reached at its own address, by HTTPS unless it is this host", () => {
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
  for (const [text, registry, base] of bases) {
    const place = registryPlace(places(text, registry));
    assertEquals(place.base, base, text);
    assertEquals(place.host, text.split("/")[0]);
    assertEquals([place.repository, place.resolves], ["o/vm", true]);
    assertEquals([place.query, place.registry], [undefined, registry]);
  }
});

Deno.test("a mirror is asked in the registry's name, with its own authority and no other's", () => {
  const registry = { caFile: "registry.pem", stallTimeoutMs: 7 };
  const mirrors = [
    { base: "https://a.lan:1/v2", resolves: false, caFile: "a.pem" },
    { base: "http://b.lan/v2", resolves: true },
  ];
  const all = { ...places("reg.example:5000/o/vm:1", registry), mirrors };
  const shared = {
    query: "ns=reg.example%3A5000",
    repository: "o/vm",
    registry,
  };
  assertEquals(mirrorPlaces(all), [
    { ...mirrors[0], ...shared, host: "a.lan:1" },
    { ...mirrors[1], ...shared, host: "b.lan" },
  ]);
});

Deno.test({
  name:
    "a place is shown its own credentials, and its connections are no HTTP/2",
  ...needs("openssl"),
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
    const mirrors = [{ base: `https://${host}/v2`, resolves: true, caFile }];
    const all = { ...places("reg.example/o/vm:1", { env }), mirrors };
    {
      using place = await openPlace(mirrorPlaces(all)[0], 2);
      const { signal } = new AbortController();
      const [{ status, body }, url] = await place
        .get("manifests/1", { headers: {}, signal });
      await body?.cancel();
      assertEquals(status, 200);
      assertEquals(
        url.href,
        `https://${host}/v2/o/vm/manifests/1?ns=reg.example`,
      );
      assertEquals(place.host, host);
    }
    listener.close();
    await served.catch(() => {});
    const login = `Basic ${btoa("me:secret")}`;
    assertEquals(seen, ["http/1.1", null, "http/1.1", login]);
  },
});
