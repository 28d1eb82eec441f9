/**
 * Verifies what the real cosign signs with a key, without a network.
 */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

/** Without logs and timestamps, so that cosign needs no network. */
const SIGNING_CONFIG = JSON.stringify({
  mediaType: "application/vnd.dev.sigstore.signingconfig.v0.2+json",
  rekorTlogConfig: {},
  tsaConfig: {},
});

Deno.test({
  name: "cosign signs an image with a key, and init and hydrate verify it",
  ...requires("cosign", "oras", "registry", "qemuImg"),
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const { dir } = work;
    const { reference } = await publishImage(registry, work);
    await Deno.remove(join(dir, ".toolsmith", "tools.json"));
    await Deno.writeTextFile(join(dir, "signing.json"), SIGNING_CONFIG);
    const run = async (program: string, args: string[]) => {
      const env = { COSIGN_PASSWORD: "", HOME: dir };
      const done = await runProcess(program, { args, cwd: dir, env });
      assertEquals(done.code, 0, done.stderr);
      return done.stdout.trim();
    };
    const cosign = (...args: string[]) => run(foundTools.cosign!, args);
    for (const name of ["ours", "theirs"]) {
      await cosign("generate-key-pair", "--output-key-prefix", name);
    }
    const init = (key: string) =>
      work.toolsmith(["init", "--ref", reference, "--signing-key", key]);
    const unsigned = await init("ours.pub");
    assertEquals(unsigned.code, 47, unsigned.stderr);

    const resolve = ["resolve", "--plain-http", reference];
    const digest = await run(foundTools.oras!, resolve);
    const name = reference.replace(/:[^:/]*$/, "");
    const sign = (key: string) =>
      cosign(
        ...["sign", "--key", key, "--signing-config", "signing.json"],
        ...["--allow-http-registry", "--yes", `${name}@${digest}`],
      );
    await sign("theirs.key");
    const other = await init("ours.pub");
    assertEquals(other.code, 48, other.stderr);
    assertMatch(other.stderr, /expected a signature by the key sha256:/);
    await sign("ours.key");
    const inited = await init("ours.pub");
    assertEquals(inited.code, 0, inited.stderr);
    assertStringIncludes(inited.stderr, "is signed by sha256:");
    const hydrated = await work.toolsmith(["hydrate", "--json"]);
    const { last } = jsonLines(hydrated.stdout);
    assertEquals(last.outcome, "pulled", hydrated.stdout);
    assertMatch(last.signature.signer, /^sha256:[0-9a-f]{64}$/);
    const doctor = await work.toolsmith(["doctor"], { permissions: ["-A"] });
    assertMatch(
      doctor.stdout,
      /ok +signature +sha256:\w+ is signed by sha256:/,
    );
  },
});
