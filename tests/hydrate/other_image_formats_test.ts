/** Servers that send another format than QCOW2, or an encoded body. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { requires } from "../support/parts.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { startRegistry } from "../support/registry.ts";
import { startTlsServer } from "../support/tls_server.ts";
import {
  jsonLines,
  makeQcow2,
  orasPush,
  TYPE,
  workspace,
} from "../support/workspace.ts";

const REAL = requires("openssl", "qemuImg");
const certificate = certificateOfFile(REAL.ignore);
const GIB = 1024 ** 3;

async function gzipped(
  bytes: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream()
    .pipeThrough(new CompressionStream("gzip"));
  return await new Response(stream).bytes();
}

/** A server with a fixed response, and a workspace that uses it. */
async function site(
  headers: Record<string, string | number>,
  answer: Uint8Array<ArrayBuffer>,
) {
  await using undo = new AsyncDisposableStack();
  const work = undo.use(await workspace());
  const server = undo.use(
    await startTlsServer(certificate(), async (exchange) => {
      await exchange.head(200, { "content-length": answer.length, ...headers });
      await exchange.body(answer);
      // The rest of the announced body is never sent, and must not be awaited.
      await exchange.stall();
    }),
  );
  const address = `${server.url}/disk.qcow2`;
  const rest = ["--json", "--ca-file", certificate().caFile, "--retries", "0"];
  const all = undo.move();
  return {
    address,
    /** Fails with the code, and names neither the digest nor a staging path. */
    async fails(command: "init" | "hydrate") {
      if (command === "hydrate") {
        await work.manifest({ qcow2: address, qcow2_sha256: "0".repeat(64) });
      }
      const args = command === "init"
        ? ["init", "--ref", address, "--manifest", "other.json"]
        : ["hydrate"];
      const { code, stdout } = await work.toolsmith([...args, ...rest]);
      const { last } = jsonLines(stdout);
      assertEquals([code, last.code], [44, "image_invalid"], stdout);
      assert(!stdout.includes("staging"), stdout);
      const cached = await work.cached();
      assertEquals(cached.filter((path) => !path.endsWith(".lock")), []);
      return last as { message: string; hint: string };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

const text = (words: string) => new TextEncoder().encode(words.padEnd(2000));

for (const command of ["init", "hydrate"] as const) {
  Deno.test({
    name:
      `${command} names the format of a non-QCOW2 response after its first bytes`,
    ...REAL,
    async fn(t) {
      const kinds = [
        [
          "a gzip file",
          await gzipped(crypto.getRandomValues(
            new Uint8Array(5000),
          )),
          "compressed with gzip",
          /curl -L https:\S+ \| gunzip >/,
        ],
        [
          "a login page",
          text("<!doctype html><h1>Log in"),
          "an HTML page",
          /login/,
        ],
        [
          "an error",
          text('{"error":"denied"}'),
          "JSON text",
          /URL of the image/,
        ],
      ] as const;
      for (const [name, bytes, is, hint] of kinds) {
        await t.step(`${command} names ${name}`, async () => {
          // Larger than the disk: the command must fail before the rest.
          const headers = { "content-length": 200 * GIB };
          await using all = await site(headers, bytes);
          const error = await all.fails(command);
          assertEquals(
            error.message,
            `${all.address} is not a QCOW2 image: it is ${is}`,
          );
          assertMatch(error.hint, hint);
        });
      }
    },
  });

  Deno.test({
    name:
      `${command} rejects a response with Content-Encoding and names the header`,
    ...REAL,
    async fn() {
      await using dir = await workspace();
      const { path } = await makeQcow2(join(dir.dir, "a.qcow2"));
      const bytes = await gzipped(await Deno.readFile(path));
      await using all = await site({ "content-encoding": "gzip" }, bytes);
      const { message, hint } = await all.fails(command);
      assertMatch(
        message,
        /Content-Encoding: gzip despite Accept-Encoding: identity$/,
      );
      assertMatch(hint, /curl -L --compressed -o FILE https:/);
    },
  });
}

Deno.test({
  name: "hydrate names the reference of an artifact that is not a QCOW2 image",
  ...requires("oras", "registry", "qemuImg"),
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const { path } = await makeQcow2(join(work.dir, "a.qcow2"));
    await Deno.writeFile(path, await gzipped(await Deno.readFile(path)));
    const bytes = await Deno.readFile(path);
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    const reference = `${registry.host}/owner/image:1.0`;
    await orasPush(reference, [`a.qcow2:${TYPE}`], { cwd: work.dir });
    await work.manifest({
      qcow2: `oci://${reference}`,
      qcow2_sha256: new Uint8Array(digest).toHex(),
    });
    const { code, stdout } = await work.toolsmith(["hydrate", "--json"]);
    assertEquals(code, 44, stdout);
    assertEquals(
      jsonLines(stdout).last.message,
      `oci://${reference} is not a QCOW2 image: it is compressed with gzip`,
    );
  },
});
