import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { COMPLETION_SCRIPTS } from "../../lib/cli/commands/completions.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";

/** Runs `toolsmith completions` with this as the nearest manifest. */
async function completions(args: string[], manifest?: unknown) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "tools.json");
  const text = typeof manifest === "string"
    ? manifest
    : JSON.stringify(manifest);
  if (manifest !== undefined) await Deno.writeTextFile(path, text);
  const env = new Map([["TOOLSMITH_MANIFEST", path]]);
  const recorded = recordedIo({ env });
  assertEquals(await performCommand(["completions", ...args], recorded), 0);
  assertEquals([recorded.results, recorded.stderrText()], [[], ""]);
  return recorded.printed;
}

const candidates = (words: string[], manifest?: unknown) =>
  completions(["candidates", "--", ...words], manifest);

Deno.test("completions prints a script for each shell and rejects arguments after --", async () => {
  for (const shell of ["bash", "zsh", "fish"] as const) {
    const script = COMPLETION_SCRIPTS[shell].trimEnd();
    assertEquals(await completions([shell]), [script]);
    const error = await expectFailure(
      "usage",
      () => completions([shell, "--", "hydrate"]),
    );
    assertEquals(error.message, `completions ${shell} takes nothing after --`);
  }
  for (const words of [["tcsh"], [], ["bash", "zsh"]]) {
    await expectFailure("usage", () => completions(words));
  }
});

Deno.test("completions candidates prints a kind, then words with their help", async () => {
  const [kind, ...lines] = await candidates(["hyd"]);
  assertEquals([kind, lines.length], ["words", 1]);
  assert(/^hydrate\t\S.*\S$/.test(lines[0]), lines[0]);
  assertEquals(await candidates(["publish", ""]), ["file"]);
  const sizes = ["words", "512M", "1G", "2G", "4G"];
  assertEquals(await candidates(["run", "--memory", ""]), sizes);
});

Deno.test("completions candidates omits the manifest's names that need shell quoting", async () => {
  const image = {
    ...{ name: "demo", qcow2: "oci://ghcr.io/owner/image:1.0" },
    qcow2_sha256: "0".repeat(64),
  };
  const tools = { fmt: "/opt/fmt", "li;touch owned": "/x", "$(id)": "/y" };
  const run = ["run", ""];
  assertEquals(await candidates(run, { image, tools }), [
    "words",
    "fmt\t/opt/fmt",
  ]);
  const ref = ["init", "--ref", ""];
  assertEquals(await candidates(ref, { image, tools }), [
    "words",
    "ghcr.io/owner/image:1.0",
  ]);
  // A local image has no reference; an invalid manifest gives no candidates.
  const file = { ...image, qcow2: "image.qcow2" };
  assertEquals(await candidates(ref, { image: file }), ["words"]);
  for (const manifest of [undefined, "{"]) {
    assertEquals(await candidates(run, manifest), ["words"]);
  }
});
