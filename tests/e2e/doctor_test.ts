import { assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { requires } from "../support/parts.ts";
import { testWithImage, workspace } from "../support/workspace.ts";

Deno.test({
  name: "doctor escapes control characters from a registry",
  ...requires("oras"),
  async fn() {
    const message = "\u001b]0;pwned\u0007\u009b31m";
    await using server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      () =>
        Response.json({ errors: [{ code: "DENIED", message }] }, {
          status: 403,
        }),
    );
    await using work = await workspace();
    await work.manifest({
      qcow2: `oci://127.0.0.1:${server.addr.port}/owner/image:1`,
      qcow2_sha256: "0".repeat(64),
    });
    const { code, stdout } = await work.toolsmith(["doctor"]);
    assertEquals(code, 1);
    assertMatch(stdout, /pwned/);
    // deno-lint-ignore no-control-regex
    assertEquals(stdout.match(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g), null);
  },
});

testWithImage(
  "doctor keeps a directory that it created once others use it",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const cache = join(dir, "a/b/cache");
    await work.toolsmith(["doctor", "--cache", cache]);
    assertEquals(await exists(join(dir, "a")), false);
    await work.toolsmith(["hydrate", "--cache", cache]);
    await work.toolsmith(["doctor", "--cache", join(cache, "deeper/one")]);
    assertEquals(await exists(join(cache, "demo", qcow2_sha256)), true);
    assertEquals(await exists(join(cache, "deeper")), false);
  },
);

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}
